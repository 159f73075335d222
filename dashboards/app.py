"""The entrypoint of the dashboards: `streamlit run dashboards/app.py`.

It shows the header and then the login page or, to who is logged in, the pages. It guarantees that
no page runs without a session proved at this very rerun.
"""

import sys
from pathlib import Path

# Streamlit puts this script's folder on the module path and not the folder above it, so a checkout
# that is not installed would not find the package this file belongs to.
CHECKOUT = str(Path(__file__).resolve().parents[1])
if CHECKOUT not in sys.path:
    sys.path.append(CHECKOUT)

import streamlit as st  # noqa: E402

from dashboards import session, tiles  # noqa: E402
from dashboards.language import language_switch  # noqa: E402
from dashboards.settings import settings  # noqa: E402
from dashboards.views import login, overview, risk  # noqa: E402
from infra.telemetry import configure_logging  # noqa: E402

ICON = Path(__file__).parent / "assets" / "icon.svg"


@st.cache_resource(show_spinner=False)
def start() -> None:
    """What happens once a process, before its first page."""
    configure_logging("dashboards")


def main() -> None:
    """Show the header and the page."""
    # An icon of Streamlit's own set would be fetched from a font server.
    st.set_page_config(page_title="Giovang", page_icon=str(ICON), layout="wide")
    start()
    tiles.style()
    merchant = session.current_merchant(settings())
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        brand = st.container(width="stretch")
        words = language_switch()
        if merchant is not None and st.button(
            words.text("logout"), icon=":material/logout:", type="tertiary"
        ):
            session.sign_out(settings())
            st.rerun()
        with brand:
            tiles.brand(words.text("brand.tagline"))
    if merchant is None:
        pages = [st.Page(login.show, title=words.text("login.title"), url_path="login")]
    else:
        pages = [
            st.Page(
                overview.show, title=words.text("page.overview"), url_path="overview", default=True
            ),
            st.Page(risk.show, title=words.text("page.risk"), url_path="risk"),
        ]
    st.navigation(pages, position="top").run()


main()
