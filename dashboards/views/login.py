"""The login page: credentials go to the API, and a proved token comes back into the session.

A refusal is said in one sentence that does not tell whether the email exists; an API that is away
is said to be just that.
"""

import streamlit as st

from dashboards import session
from dashboards.language import chosen_language
from dashboards.settings import settings


def show() -> None:
    """Show the form; a successful login reruns the app into its pages."""
    words = chosen_language()
    parting = session.parting_words()
    _, middle, _ = st.columns([1, 1.5, 1])
    with middle:
        st.space("medium")
        with st.form("login", border=True):
            st.subheader(words.text("login.title"), anchor=False)
            st.caption(words.text("login.hint"))
            email = st.text_input(words.text("login.email"), key="email", autocomplete="username")
            password = st.text_input(
                words.text("login.password"),
                type="password",
                key="password",
                autocomplete="current-password",
            )
            submitted = st.form_submit_button(
                words.text("login.submit"), type="primary", width="stretch"
            )
        if parting is not None:
            st.info(words.text(parting), icon=":material/lock_clock:")
        if submitted:
            _log_in(email, password)


def _log_in(email: str, password: str) -> None:
    try:
        session.log_in(email, password, settings())
    except session.SessionError as error:
        st.error(chosen_language().text(error.refusal), icon=":material/error:")
        return
    st.rerun()
