class Refused extends Error {}

// Each event as {name, data}. Reconnects, and stops at `end`. Throws Refused for 401, 403 and 404.
async function* events(url, token, last) {
  for (;;) {
    try {
      const headers = { Authorization: `Bearer ${token}`, Accept: "text/event-stream" };
      if (last !== undefined) headers["Last-Event-ID"] = last;
      const answer = await fetch(url, { headers });
      if (answer.status === 204) return;
      if (!answer.ok && ![429, 503].includes(answer.status)) throw new Refused(await answer.text());
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const blocks = (text + part.value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const event = {};
          for (const line of block.split("\n")) event[line.split(": ", 1)[0]] = line.slice(line.indexOf(": ") + 2);
          last = event.id ?? last;
          if (event.data === undefined) continue;
          yield { name: event.event, data: JSON.parse(event.data) };
          if (event.event === "end") return;
        }
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

const { API, STREAM, TOKEN } = process.env;
for await (const { name, data } of events(API + STREAM, TOKEN)) console.log(name, data.status ?? data.to);
