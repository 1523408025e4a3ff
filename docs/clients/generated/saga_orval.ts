// Post, follow and cancel an order with the client that orval generates for fetch.

import {
  cancelOrder,
  createOrder,
  deadLetters,
  getOrder,
  type Order,
  OrderReason,
  OrderStatus,
  putOffer,
  putStock,
  queues,
  startReplay,
  token,
} from "./orval.js";

async function signIn(username: string): Promise<RequestInit> {
  const answer = await token({ username, password: `demo-${username}` });
  if (answer.status !== 200) throw new Error(answer.data.error.code);
  return { headers: { Authorization: `Bearer ${answer.data.access_token}` } };
}

const key = () => ({ "Idempotency-Key": crypto.randomUUID() });

const admin = await signIn("admin");
const listed = await putOffer("lamp", { currency: "EUR", unit_price: 1999 }, admin);
if (listed.status !== 200 && listed.status !== 201) throw new Error(listed.data.error.code);
const stocked = await putStock("lamp", { on_hand: 1000 }, admin);
if (stocked.status !== 200) throw new Error(stocked.data.error.code);

const shop = await signIn("customer");

async function wait(orderId: string, ...states: OrderStatus[]): Promise<Order> {
  for (;;) {
    const answer = await getOrder(orderId, { wait: states.join(","), timeout: 25 }, shop);
    if (answer.status !== 200) throw new Error(answer.data.error.code);
    if (states.includes(answer.data.status)) return answer.data;
  }
}

const items = [{ sku: "lamp", quantity: 1, unit_price: 1999 }];
const posted = await createOrder({ currency: "EUR", payment_method: "mock_ok", items }, key(), shop);
if (posted.status !== 201) throw new Error(`${posted.status}`);
const id = posted.data.order_id;
console.log("posted", posted.data.status);
console.log("settled", (await wait(id, OrderStatus.PAID, OrderStatus.CANCELLED)).status);
const cancelled = await cancelOrder(id, key(), shop);
if (cancelled.status !== 202) throw new Error(cancelled.data.error.code);
const ended = await wait(id, "CANCELLED");
if (ended.reason !== OrderReason.order_cancelled) throw new Error(String(ended.reason));

const operator = await signIn("operator");
const counted = await queues(operator);
if (counted.status !== 200) throw new Error(counted.data.error.code);
for (const { queue } of counted.data.items) {
  const page = await deadLetters(queue, undefined, operator);
  if (page.status !== 200) throw new Error(page.data.error.code);
}
const replay = await startReplay("q.order.payment-result.dlq", { all: true, rate: "10/s" }, operator);
if (replay.status !== 202) throw new Error(replay.data.error.code);

console.log("ended", ended.status);
