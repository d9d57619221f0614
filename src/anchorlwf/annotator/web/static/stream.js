// The continuation as it comes: one EventSource at a time.

/**
 * Follow a node's tokens from `start` on. Returns a function that stops following (the server goes on, up to the first
 * end of a sentence behind `pause` tokens).
 * `on`: {tokens(data), done(data), failed(error), lost()}.
 */
export function follow(session, node, start, pause, on) {
  const source = new EventSource(`/api/sessions/${session}/stream?node=${node}&start=${start}${pause ? `&pause=${pause}` : ""}`);
  source.addEventListener("tokens", (event) => on.tokens(JSON.parse(event.data)));
  source.addEventListener("done", (event) => {
    source.close();
    on.done(JSON.parse(event.data));
  });
  source.addEventListener("failed", (event) => {
    source.close();
    on.failed(JSON.parse(event.data).error);
  });
  // The browser's own retry knows neither our back-off nor that the session may have moved on: ours does.
  source.addEventListener("error", () => {
    source.close();
    on.lost();
  });
  return () => source.close();
}
