"""HTTP for admins: disputes, refunds that were sent, and money that names nobody.

Asking for a refund takes an Idempotency-Key. The others need none: each names the one thing it
changes, which changes once.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.contract import RefundStatus
from api.database import Unit
from api.errors import Conflict, InsufficientBalance, NotFound, RefundExceedsPayment
from api.idempotency import request_digest
from api.paging import Paging, by_id, paging
from api.payments import escrow, exceptions, refunds, service, store
from api.payments.model import (
    AssignTransfer,
    CompleteRefund,
    CreateRefund,
    FailRefund,
    OpenDispute,
    Payment,
    RefundId,
    ResolveDispute,
    ReturnTransfer,
)
from api.payments.params import (
    AUTH,
    ONCE,
    DisputeAdmin,
    Key,
    PaymentAdmin,
    PaymentPath,
    RefundAdmin,
)
from api.payments.views import (
    DisputeList,
    PaymentView,
    RefundList,
    RefundView,
    TransferList,
    TransferView,
    present,
    present_dispute,
    present_refund,
    present_transfer,
)
from api.people.auth import acting_for, identity_of, once
from api.web import (
    answer_once,
    json_answer,
    operator_of,
    problems,
    settings_of,
)
from api.wording import worded

router = APIRouter(prefix="/admin", tags=["admin"])
RefundPath = Annotated[RefundId, Path(examples=["rfd_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
_TRANSFER_ID = worded(
    r"^[1-9A-HJ-NP-Za-km-z]{32,128}:[1-9A-HJ-NP-Za-km-z]{32,44}$",
    "the id of a transfer: its signature, a colon, and the token account",
)
_TRANSFER_EXAMPLE = f"{'5' * 88}:5ZGPSxMzV9xV5s3Wep73r8k5MsPAtLYs11dGDdknznM5"
TransferPath = Annotated[
    str,
    Path(
        pattern=_TRANSFER_ID,
        description="Signature and token account",
        examples=[_TRANSFER_EXAMPLE],
    ),
]


@router.get(
    "/disputes",
    response_model=DisputeList,
    responses=problems(*AUTH),
    summary="List open disputes",
)
async def list_disputes(
    request: Request, admin: DisputeAdmin, page: Annotated[Paging, Depends(by_id("dsp"))]
) -> Response:
    """List disputes that wait for a decision, the oldest first."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        found, has_more = await escrow.open_disputes(unit, page, mode=admin.mode)
    view = DisputeList(data=[present_dispute(dispute) for dispute in found], has_more=has_more)
    return json_answer(view.model_dump_json())


@router.post(
    "/payments/{payment_id}/dispute",
    response_model=PaymentView,
    responses=problems(*AUTH, NotFound, Conflict),
    summary="Open a dispute for a payer",
)
async def dispute(
    request: Request, payment_id: PaymentPath, body: OpenDispute, admin: DisputeAdmin
) -> Response:
    """Stop the release for a payer who cannot sign: who paid from an exchange, say."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        payment = await escrow.dispute(unit, payment_id, opened_by=admin.actor, reason=body.reason)
        view = await _present(request, unit, payment)
    return json_answer(view.model_dump_json())


@router.post(
    "/payments/{payment_id}/resolve",
    response_model=PaymentView,
    responses=problems(*AUTH, NotFound, Conflict),
    summary="Resolve a dispute",
)
async def resolve(
    request: Request, payment_id: PaymentPath, body: ResolveDispute, admin: DisputeAdmin
) -> Response:
    """Give escrowed money to the merchant, the payer, or both. The payer's part waits as excess."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        payment = await escrow.resolve(unit, payment_id, body)
        view = await _present(request, unit, payment)
    return json_answer(view.model_dump_json())


async def _present(request: Request, unit: Unit, payment: Payment) -> PaymentView:
    terms = await store.terms(unit, payment.merchant_id)
    public_url = settings_of(request).public_url
    return present(payment, merchant_name=terms.merchant_name, public_url=public_url)


@router.post(
    "/payments/{payment_id}/refunds",
    status_code=201,
    response_model=RefundView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict, RefundExceedsPayment, InsufficientBalance),
    summary="Request a refund for a payer",
)
async def request_refund(
    request: Request, payment_id: PaymentPath, body: CreateRefund, admin: RefundAdmin, key: Key
) -> Response:
    """Hold a payer's money for going back, without the merchant: after a dispute, say."""
    operator = operator_of(request)
    async with operator.unit_of_work(identity_of(request, admin)) as unit:
        merchant_id = (await service.get(unit, payment_id)).merchant_id

    async def work(unit: Unit) -> RefundView:
        return present_refund(await refunds.request_refund(unit, payment_id, body, mode=None))

    digest = request_digest("request refund", {"payment_id": payment_id, **body.model_dump()})
    identity = acting_for(request, admin, merchant_id)
    return await answer_once(operator, identity, once(admin, key, digest), work, status=201)


@router.get(
    "/refunds",
    response_model=RefundList,
    responses=problems(*AUTH),
    summary="List refunds of all merchants",
)
async def list_refunds(
    request: Request,
    admin: RefundAdmin,
    page: Annotated[Paging, Depends(by_id("rfd"))],
    status: Annotated[RefundStatus | None, Query()] = None,
) -> Response:
    """List refunds, newest first; those that are `requested` wait to be sent."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        found, has_more = await refunds.page(
            unit, page, mode=admin.mode, status=status, payment_id=None
        )
    view = RefundList(data=[present_refund(refund) for refund in found], has_more=has_more)
    return json_answer(view.model_dump_json())


@router.post(
    "/refunds/{refund_id}/complete",
    response_model=RefundView,
    responses=problems(*AUTH, NotFound, Conflict, InsufficientBalance),
    summary="Say that a refund was sent",
)
async def complete_refund(
    request: Request, refund_id: RefundPath, body: CompleteRefund, admin: RefundAdmin
) -> Response:
    """Book a refund whose tokens were sent by this chain transaction."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        refund = await refunds.complete(unit, refund_id, body.signature)
    return json_answer(present_refund(refund).model_dump_json())


@router.post(
    "/refunds/{refund_id}/fail",
    response_model=RefundView,
    responses=problems(*AUTH, NotFound, Conflict),
    summary="Give up on a refund",
)
async def fail_refund(
    request: Request, refund_id: RefundPath, body: FailRefund, admin: RefundAdmin
) -> Response:
    """End a refund that cannot be sent; what was held for it is free again."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        refund = await refunds.fail(unit, refund_id, body.reason)
    return json_answer(present_refund(refund).model_dump_json())


@router.get(
    "/suspense",
    response_model=TransferList,
    responses=problems(*AUTH),
    summary="List money that names nobody",
)
async def list_suspense(
    request: Request,
    admin: PaymentAdmin,
    page: Annotated[Paging, Depends(paging(_TRANSFER_ID, example=_TRANSFER_EXAMPLE))],
) -> Response:
    """List final receipts that match no payment, newest first; page on with the last one's id."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        found, has_more = await exceptions.unassigned(unit, page)
    settings = settings_of(request)
    view = TransferList(
        data=[present_transfer(transfer, settings) for transfer in found], has_more=has_more
    )
    return json_answer(view.model_dump_json())


@router.post(
    "/suspense/{transfer_id}/assign",
    response_model=TransferView,
    responses=problems(*AUTH, NotFound, Conflict),
    summary="Assign money to a payment",
)
async def assign(
    request: Request, transfer_id: TransferPath, body: AssignTransfer, admin: PaymentAdmin
) -> Response:
    """Treat a receipt that names nobody as if it had named this payment."""
    settings = settings_of(request)
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        transfer = await exceptions.assign(unit, transfer_id, body, settings=settings)
    return json_answer(present_transfer(transfer, settings).model_dump_json())


@router.post(
    "/suspense/{transfer_id}/return",
    response_model=TransferView,
    responses=problems(*AUTH, NotFound, Conflict),
    summary="Say that nobody's money went back",
)
async def give_back(
    request: Request, transfer_id: TransferPath, body: ReturnTransfer, admin: PaymentAdmin
) -> Response:
    """Book that a receipt that names nobody was sent back to its sender."""
    settings = settings_of(request)
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        transfer = await exceptions.give_back(unit, transfer_id, body, settings=settings)
    return json_answer(present_transfer(transfer, settings).model_dump_json())
