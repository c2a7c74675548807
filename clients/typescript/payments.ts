// Accounts, payments, holds, statements and problems, with the types that openapi-typescript generates.
//
// Run: npm ci && npx openapi-typescript ../../docs/openapi.json -o schema.d.ts && npx tsc && node payments.js http://127.0.0.1:8080
// A key of the API is taken from the environment variable SHARDLEDGER_KEY.
import { strict as assert } from "node:assert";
import { randomUUID as uuid } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Problem = components["schemas"]["Problem"];
type Answer<T> = { data?: T; error?: Problem; response: Response };

const key = process.env.SHARDLEDGER_KEY;
const headers = key ? { Authorization: `Bearer ${key}` } : {};
const client = createClient<paths>({ baseUrl: process.argv[2] ?? "http://127.0.0.1:8080", headers });
const run = uuid().slice(0, 8);
const [bank, alice, shop] = [`bank:${run}`, `alice:${run}`, `shop:${run}`];

/** The answer; a problem ends the program. */
function answer<T>({ data, error }: Answer<T>): T {
  if (data === undefined) throw new Error(JSON.stringify(error));
  return data;
}

function problem({ error, response }: Answer<unknown>, status: number, code: string): Problem {
  assert.ok(error, `${response.status} is no problem`);
  assert.deepEqual([response.status, error.status, error.code, error.executed], [status, status, code, false]);
  return error;
}

/** The definite answer to an order. Until there is one, the order is sent again as it was: under one id, nothing is done twice. */
async function send<T>(order: () => Promise<Answer<T>>, attempts = 10): Promise<Answer<T>> {
  for (let pause = 100; attempts > 0; attempts--, pause = Math.min(2 * pause, 5000)) {
    // Without an answer, the order may have been executed.
    const found = await order().catch(() => undefined);
    if (found && !found.error?.retryable) return found;
    const after = 1000 * Number(found?.response.headers.get("retry-after") ?? 0);
    await sleep(Math.max(pause, after) * (1 + Math.random() / 2));
  }
  throw new Error("no definite answer: keep the id, and send the order again later");
}

const pay = (id: string, amount: string, debit = alice, credit = shop) =>
  client.POST("/v1/transfers", { body: { id, debit, credit, amount, asset: "EUR" } });
const balance = async () => answer(await client.GET("/v1/accounts/{id}", { params: { path: { id: alice } } })).available;

for (const [id, overdraft] of [[bank, "unlimited"], [alice, "0.00"], [shop, "0.00"]]) {
  answer(await client.POST("/v1/accounts", { body: { id, asset: "EUR", overdraft } }));
}
answer(await pay(uuid(), "100.00", bank, alice));

// A payment, sent twice under one id, moves the money once.
const payment = uuid();
const [first, again] = [await pay(payment, "30.00"), await pay(payment, "30.00")];
assert.equal(answer(first).id, answer(again).id);
assert.equal(again.response.headers.get("idempotent-replayed"), "true");
assert.equal(await balance(), "70.00");

// The same with an answer that is lost on the way: the second attempt learns what the first one did.
let isLost = true;
const learnt = await send(async () => {
  const sent = await pay(payment, "30.00");
  if (isLost) {
    isLost = false;
    throw new Error("the answer is lost");
  }
  return sent;
});
assert.equal(answer(learnt).id, payment);
assert.equal(learnt.response.headers.get("idempotent-replayed"), "true");

// A hold, captured in part; the rest is released.
const hold = answer(await client.POST("/v1/holds", { body: { id: uuid(), debit: alice, credit: shop, amount: "20.00", asset: "EUR" } }));
const ofHold = { params: { path: { id: hold.id }, query: { debit: alice } } };
const part = await client.POST("/v1/holds/{id}/capture", { ...ofHold, body: { id: uuid(), amount: "5.00", final: false } });
assert.equal(answer(part).amount, "5.00");
assert.equal(answer(await client.POST("/v1/holds/{id}/release", ofHold)).captured, "5.00");

// A part of the payment goes back.
const original = { params: { path: { id: payment }, query: { debit: alice } } };
answer(await client.POST("/v1/transfers/{id}/reverse", { ...original, body: { id: uuid(), amount: "10.00" } }));

// A batch: one transfer of it is refused, the other is posted.
const transfers = ["1.00", "999.00"].map((amount) => ({ id: uuid(), debit: alice, credit: shop, amount, asset: "EUR" }));
const batch = answer(await client.POST("/v1/transfers:batch", { body: { transfers } }));
assert.deepEqual(batch.results.map(({ status, code }) => [status, code]), [["posted", undefined], ["rejected", "insufficient_funds"]]);

// The statement, page after page.
const amounts: string[] = [];
let cursor: string | undefined;
do {
  const page = answer(await client.GET("/v1/accounts/{id}/entries", { params: { path: { id: alice }, query: { limit: 3, cursor } } }));
  amounts.push(...page.data.map((entry) => entry.amount));
  cursor = page.next_cursor ?? undefined;
} while (cursor);
assert.ok(amounts.length >= 5);

// Problems of each kind say what is wrong, and that nothing was executed.
assert.equal(problem(await pay(uuid(), "1.001"), 400, "invalid_amount").errors?.[0].pointer, "/amount");
problem(await client.GET("/v1/accounts/{id}", { params: { path: { id: `nobody:${run}` } } }), 404, "account_not_found");
problem(await client.GET("/v1/transfers/{id}", { params: { path: { id: uuid() } } }), 404, "transfer_not_found");
problem(await client.POST("/v1/holds/{id}/capture", { ...ofHold, body: { id: uuid() } }), 409, "hold_released");
assert.equal(problem(await pay(payment, "31.00"), 422, "idempotency_mismatch").field, "amount");
assert.equal(problem(await pay(uuid(), "999.00"), 422, "insufficient_funds").side, "debit");
console.log(`${alice} has ${await balance()} EUR`);
