"""Merchants and their settings, each change in the caller's unit of work."""

from api.database import Unit
from api.errors import NotFound
from api.merchants import store
from api.merchants.model import (
    Merchant,
    MerchantBody,
    MerchantChange,
    MerchantList,
    MerchantView,
)
from api.paging import Paging


async def get_merchant(unit: Unit) -> Merchant:
    """Return the unit's merchant; raises NotFound where there is none of that id."""
    merchant = await store.get(unit)
    if merchant is None:
        raise NotFound("no merchant has this id")
    return merchant


async def put_merchant(unit: Unit, body: MerchantBody) -> Merchant:
    """Create the unit's merchant, or change it to what the body says."""
    await store.put(unit, body.model_dump())
    return await get_merchant(unit)


async def change_merchant(unit: Unit, change: MerchantChange) -> Merchant:
    """Change the settings that are the owner's to change."""
    await store.change(unit, change.model_dump())
    return await get_merchant(unit)


async def list_merchants(unit: Unit, paging: Paging) -> MerchantList:
    """Return a page of merchants, newest first: all that the unit's role may see."""
    found, has_more = paging.cut(await store.page(unit, paging=paging))
    return MerchantList(data=[present(merchant) for merchant in found], has_more=has_more)


def present(merchant: Merchant) -> MerchantView:
    """Return a merchant as the API shows it."""
    return MerchantView.model_validate(merchant, from_attributes=True)
