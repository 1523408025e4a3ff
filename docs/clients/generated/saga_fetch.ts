// Post, follow and cancel an order with openapi-fetch and the types that openapi-typescript generates.

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string | undefined> };
type Schemas = components["schemas"];
type Answer<T> = { data?: T; error?: Schemas["ErrorAnswer"]; response: Response };

const baseUrl = process.env["API"] ?? "http://127.0.0.1:8000";

function good<T>({ data, error }: Answer<T>): T {
  if (data === undefined) throw new Error(error?.error.code);
  return data;
}

async function signIn(username: string) {
  const body: Schemas["PasswordLogin"] = { username, password: `demo-${username}` };
  const token = good(await createClient<paths>({ baseUrl }).POST("/api/auth/token", { body }));
  return createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token.access_token}` } });
}

const key = () => ({ "Idempotency-Key": crypto.randomUUID() });

const admin = await signIn("admin");
const offer: Schemas["OfferRequest"] = { currency: "EUR", unit_price: 1999 };
good(await admin.PUT("/api/menu/offers/{sku}", { params: { path: { sku: "lamp" } }, body: offer }));
good(await admin.PUT("/api/stocks/{sku}", { params: { path: { sku: "lamp" } }, body: { on_hand: 1000 } }));

const shop = await signIn("customer");

async function wait(order_id: string, ...states: Schemas["OrderStatus"][]): Promise<Schemas["Order"]> {
  for (;;) {
    const query = { wait: states.join(","), timeout: 25 };
    const order = good(await shop.GET("/api/orders/{order_id}", { params: { path: { order_id }, query } }));
    if (states.includes(order.status)) return order;
  }
}

// A sentence for each state: the compiler knows that none is left out.
function inWords(status: Schemas["OrderStatus"]): string {
  switch (status) {
    case "PENDING":
    case "RESERVED":
      return "in progress";
    case "PAID":
      return "paid";
    case "REFUND_PENDING":
    case "REFUND_FAILED":
      return "to be refunded";
    case "CANCELLED":
      return "cancelled";
  }
}

const posted = good(
  await shop.POST("/api/orders", {
    params: { header: key() },
    body: { currency: "EUR", payment_method: "mock_ok", items: [{ sku: "lamp", quantity: 1, unit_price: 1999 }] },
  }),
);
const path = { order_id: posted.order_id };
console.log("posted", inWords(posted.status));
console.log("settled", inWords((await wait(posted.order_id, "PAID", "CANCELLED")).status));
good(await shop.POST("/api/orders/{order_id}/cancel", { params: { path, header: key() } }));
const ended = await wait(posted.order_id, "CANCELLED");
const reason: Schemas["OrderReason"] | null = ended.reason;
if (reason !== "order_cancelled") throw new Error(String(reason));

const operator = await signIn("operator");
const { items } = good(await operator.GET("/api/ops/queues"));
for (const { queue } of items) good(await operator.GET("/api/ops/dlq/{queue}", { params: { path: { queue } } }));
const dlq: Schemas["DlqName"] = "q.order.payment-result.dlq";
const replay = good(
  await operator.POST("/api/ops/dlq/{queue}/replays", { params: { path: { queue: dlq } }, body: { max: 1, rate: "10/s" } }),
);
const running: Schemas["OperationStatus"] = replay.status;
if (running === "failed") throw new Error(replay.outcome);

// @ts-expect-error a word that is not in the list
const typo: Schemas["OrderStatus"] = "TYPO";
void typo;

console.log("ended", ended.status);
