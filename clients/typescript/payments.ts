// Accounts, payments, holds, statements and problems, with the types that openapi-typescript generates.
//
// Run: npm install && npx openapi-typescript ../../docs/openapi.json -o schema.d.ts && npx tsc && node payments.js http://127.0.0.1:8080
import { strict as assert } from "node:assert";
import { randomUUID as uuid } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Problem = components["schemas"]["Problem"];
type Answer<T> = { data?: T; error?: Problem; response: Response };

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "http://127.0.0.1:8080" });
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
