"""Accounts, payments, holds, statements and problems, with the client that openapi-python-client generates.

Run: python payments.py http://127.0.0.1:8080
A key of the API is taken from the environment variable SHARDLEDGER_KEY.
"""

import os
import random
import sys
import time
from uuid import UUID, uuid4

import httpx

from shardledger_client import Client
from shardledger_client.api.accounts import get_account, list_entries, open_account
from shardledger_client.api.holds import capture_hold, create_hold, release_hold
from shardledger_client.api.transfers import create_transfer, create_transfers, get_transfer, reverse_transfer
from shardledger_client.models import (
    Account, BatchedTransfer, BatchResults, EntryPage, Hold, NewAccount, NewCapture, NewHold, NewReversal, NewTransfer,
    NewTransferBatch, Problem, Side, Transfer,
)

key = os.environ.get("SHARDLEDGER_KEY")
client = Client(
    base_url=sys.argv[1], raise_on_unexpected_status=True, headers={"Authorization": f"Bearer {key}"} if key else {})
run = uuid4().hex[:8]
bank, alice, shop = f"bank:{run}", f"alice:{run}", f"shop:{run}"


def answer(kind, response):
    """The answer as `kind`; anything else, a problem for example, ends the program."""
    assert isinstance(response.parsed, kind), f"{response.status_code}: {response.content.decode()}"
    return response.parsed


def problem(response, status: int, code: str) -> Problem:
    found = answer(Problem, response)
    assert (response.status_code, found.status, found.code, found.executed) == (status, status, code, False), found
    return found


def send(order, attempts=10):
    """The definite answer to an order. Until there is one, the order is sent again as it was: under one id, nothing is done twice."""
    pause = 0.1
    for _ in range(attempts):
        try:
            response = order()
        except httpx.TransportError:
            response = None  # There is no answer: the order may have been executed.
        if response is not None and not (isinstance(response.parsed, Problem) and response.parsed.retryable):
            return response
        after = float(response.headers.get("retry-after", 0)) if response is not None else 0
        time.sleep(max(pause, after) * random.uniform(1, 1.5))
        pause = min(2 * pause, 5)
    raise TimeoutError("no definite answer: keep the id, and send the order again later")


def pay(id: UUID, amount: str, debit=alice, credit=shop):
    body = NewTransfer(id=id, debit=debit, credit=credit, amount=amount, asset="EUR")
    return create_transfer.sync_detailed(client=client, body=body)


for id, overdraft in ((bank, "unlimited"), (alice, "0.00"), (shop, "0.00")):
    answer(Account, open_account.sync_detailed(client=client, body=NewAccount(id=id, asset="EUR", overdraft=overdraft)))
answer(Transfer, pay(uuid4(), "100.00", bank, alice))

# A payment, sent twice under one id, moves the money once.
payment = uuid4()
first, again = pay(payment, "30.00"), pay(payment, "30.00")
assert answer(Transfer, first).id == answer(Transfer, again).id and again.headers["idempotent-replayed"] == "true"
assert answer(Account, get_account.sync_detailed(alice, client=client)).available == "70.00"

# The same with an answer that is lost on the way: the second attempt learns what the first one did.
lost = [httpx.ReadError("the answer is lost")]


def pay_over_a_bad_line():
    response = pay(payment, "30.00")
    if lost:
        raise lost.pop()
    return response


again = send(pay_over_a_bad_line)
assert answer(Transfer, again).id == payment and again.headers["idempotent-replayed"] == "true"

# A hold, captured in part; the rest is released.
hold = answer(Hold, create_hold.sync_detailed(
    client=client, body=NewHold(id=uuid4(), debit=alice, credit=shop, amount="20.00", asset="EUR")))
part = NewCapture(id=uuid4(), amount="5.00", final=False)
assert answer(Transfer, capture_hold.sync_detailed(hold.id, client=client, body=part)).amount == "5.00"
assert answer(Hold, release_hold.sync_detailed(hold.id, client=client, debit=alice)).captured == "5.00"

# A part of the payment goes back.
answer(Transfer, reverse_transfer.sync_detailed(
    payment, client=client, debit=alice, body=NewReversal(id=uuid4(), amount="10.00")))

# A batch: one transfer of it is refused, the other is posted.
orders = [BatchedTransfer(id=uuid4(), debit=alice, credit=shop, amount=amount, asset="EUR") for amount in ("1.00", "999.00")]
batch = answer(BatchResults, create_transfers.sync_detailed(client=client, body=NewTransferBatch(transfers=orders)))
assert [(item.status.value, item.code or None) for item in batch.results] == [
    ("posted", None), ("rejected", "insufficient_funds")], batch

# The statement, page after page.
page = answer(EntryPage, list_entries.sync_detailed(alice, client=client, limit=3))
amounts = [entry.amount for entry in page.data]
while page.next_cursor:
    page = answer(EntryPage, list_entries.sync_detailed(alice, client=client, limit=3, cursor=page.next_cursor))
    amounts += [entry.amount for entry in page.data]
assert len(amounts) >= 5, amounts

# Problems of each kind say what is wrong, and that nothing was executed.
malformed = problem(pay(uuid4(), "1.001"), 400, "invalid_amount")
assert [error.pointer for error in malformed.errors or []] == ["/amount"]
problem(get_account.sync_detailed(f"nobody:{run}", client=client), 404, "account_not_found")
problem(get_transfer.sync_detailed(uuid4(), client=client), 404, "transfer_not_found")
problem(capture_hold.sync_detailed(hold.id, client=client, body=NewCapture(id=uuid4())), 409, "hold_released")
assert problem(pay(payment, "31.00"), 422, "idempotency_mismatch").field == "amount"
assert problem(pay(uuid4(), "999.00"), 422, "insufficient_funds").side == Side.DEBIT
print(f"{alice} has {answer(Account, get_account.sync_detailed(alice, client=client)).available} EUR")
