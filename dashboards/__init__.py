"""Show: Streamlit pages in which each merchant sees its own marts, and how fresh they are."""
