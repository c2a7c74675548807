"""What schemathesis cannot know from the description: the rules between fields, and the rules of HTTP.

Nothing here switches a check off. A failure is dropped only if the answer itself names one of the rules below, so an
answer that is wrong for any other reason still fails the run.
"""

import itertools
import json
import re
import uuid

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, ServerError
from schemathesis.openapi.checks import RejectedPositiveData

# Rules of the contract that no JSON schema can express, by the code and the words that each is refused with.
RULES_BETWEEN_FIELDS = {
    "same_account": r"",  # debit and credit differ
    "duplicate_id": r"",  # no id twice in one batch
    "idempotency_required": r"Idempotency-Key$",  # the id in the body, or the header
    "invalid_asset": r"is not known here",  # the assets are configured
    "invalid_amount": r"decimal places of its asset$|larger than the ledger can hold$",  # the scale is the asset's
    "invalid_metadata": r"at most 4096 bytes together$",  # keys and values in sum
    # A cursor is opaque: only the router that made it knows. A whole list has no pages.
    "invalid_parameter": r"^cursor: |^limit: not in a request with at",
}

# A machine busy with tests cannot meet every deadline. What it answers then, it answers when the deadline is over.
DEFAULT_DEADLINE_MS = 5000
MISSED_DEADLINE = {"shard_unavailable", "outcome_unknown", "request_timeout"}

# Unknown headers are ignored: HTTP demands it (RFC 9110, section 5.1).
UNKNOWN_HEADER = "x-schemathesis-unknown-property"
ONLY_UNKNOWN_HEADERS = "Invalid component: in header - object with unexpected properties"

# What the examples of the description use, and have used up by the time schemathesis sends them again.
EXAMPLE_TRANSFER = re.compile(r"^0190d7c0-0000-7000-")
EXAMPLE_ACCOUNTS = {"alice", "bob", "world", "shop:7"}
KNOWN_ASSETS = {"USD", "JPY", "BTC"}
CURSOR = re.compile(r"^[av][0-9a-f]+$")
NUMBERS = itertools.count()


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    """One JSON value a line. What is no list is sent as the one line it is."""
    lines = value if isinstance(value, list) else [value]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Gives valid requests a chance to be carried out: without it, hardly one would get to the ledger."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if not CURSOR.match(str((case.query or {}).get("cursor", "v1"))):
        # A page of random text is no page; real cursors come from the pages before.
        case.query.pop("cursor")
    if case.media_type == "application/json" and case.query:
        # JSON has it in the body.
        case.query.pop("atomic", None)
    orders = [case.body] if case.method == "POST" else []
    if isinstance(case.body, dict):
        orders += case.body.get("accounts", []) + case.body.get("transfers", [])
    elif isinstance(case.body, list):
        orders += case.body
    for order in orders:
        if isinstance(order, dict):
            _renew(order)


def _renew(order):
    """The examples have used their ids up, and only some assets are known."""
    order_id = order.get("id")
    if isinstance(order_id, str) and EXAMPLE_TRANSFER.match(order_id):
        order["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, str(next(NUMBERS))))
    elif order_id in EXAMPLE_ACCOUNTS:
        order["id"] = f"account-{next(NUMBERS)}"
    if "asset" in order and order["asset"] not in KNOWN_ASSETS:
        order["asset"] = "USD"


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether it is one. The answer's own code must say that a rule applied which the description cannot express."""
    if not isinstance(failure, (AcceptedNegativeData, RejectedPositiveData, ServerError)):
        return True
    if isinstance(failure, AcceptedNegativeData) and ONLY_UNKNOWN_HEADERS in failure.message:
        return UNKNOWN_HEADER not in (case.headers or {})
    try:
        problem = response.json()
    except ValueError:
        return True
    if not isinstance(problem, dict):
        return True
    if _missed_its_deadline(case, response, problem):
        return False
    if isinstance(failure, RejectedPositiveData) and None in (case.path_parameters or {}).values():
        # It followed a link of its own guess from an entry that no transfer made: there is no path to such a thing.
        return False
    if isinstance(failure, RejectedPositiveData):
        return not _breaks_a_rule_between_fields(response.status_code, problem)
    return True


def _missed_its_deadline(case, response, problem):
    try:
        deadline_ms = int((case.headers or {}).get("X-Request-Timeout-Ms", DEFAULT_DEADLINE_MS))
    except ValueError:
        return False
    return response.elapsed * 1000 >= deadline_ms and problem.get("code") in MISSED_DEADLINE


def _breaks_a_rule_between_fields(status, problem):
    # A refusal by the business is no judgement of the request's form.
    if status == 422:
        return True
    errors = problem.get("errors") or [problem]
    return status == 400 and all(
        re.search(RULES_BETWEEN_FIELDS.get(error.get("code"), "(?!)"), error.get("detail", "")) for error in errors
    )
