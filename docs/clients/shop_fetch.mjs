// Post an order, follow it by its stream and cancel it, with the fetch of Node 18 or later, or of a browser.

const { API = "http://127.0.0.1:8000", SHOP_USER = "customer", SHOP_PASSWORD = "demo-customer" } = process.env;
const headers = { "Content-Type": "application/json" };

async function call(method, path, { body, key } = {}) {
  const answer = await fetch(API + path, {
    method,
    headers: key ? { ...headers, "Idempotency-Key": key } : headers,
    body: body && JSON.stringify(body),
  });
  const json = await answer.json();
  if (!answer.ok) throw new Error(`${answer.status} ${json.error.code}, trace ${json.error.traceId}`);
  return json;
}

// Prints each step after step `last`, until the order is at rest. Returns the id of the last step.
async function follow(orderId, last = "0") {
  for (;;) {
    const answer = await fetch(`${API}/api/orders/${orderId}/events`, { headers: { ...headers, "Last-Event-ID": last } });
    if (answer.status === 204) return last;
    if (!answer.ok) throw new Error(`${answer.status}`);
    let text = "";
    try {
      for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
        const events = (text + part).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
          last = field("id") ?? last;
          if (field("event") === "end") return last;
          if (field("data")) console.log("  step", field("event"), "->", JSON.parse(field("data")).to);
        }
      }
    } catch (cut) {
      console.log("  the stream was cut:", cut.message);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000)); // then continue after the last step
  }
}

const login = await call("POST", "/api/auth/token", { body: { username: SHOP_USER, password: SHOP_PASSWORD } });
headers.Authorization = `Bearer ${login.access_token}`;

let order = await call("POST", "/api/orders", {
  key: crypto.randomUUID(),
  body: { currency: "EUR", payment_method: "mock_ok", items: [{ sku: "lamp", quantity: 1, unit_price: 1999 }] },
});
const path = `/api/orders/${order.order_id}`;
console.log("posted", order.order_id, order.status);

const last = await follow(order.order_id);
console.log("settled", (await call("GET", path)).status);

order = await call("POST", `${path}/cancel`, { key: crypto.randomUUID() });
console.log("cancel", order.status);

await follow(order.order_id, last);
console.log("ended", (await call("GET", path)).status);
