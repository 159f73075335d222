"""The pages; each module has one `show` that `st.navigation` calls."""
