// What a person can do: by pointer, by touch, by keyboard.

/** Arrow keys move by `steps` and Home and End to the ends; returns the new index, or null for other keys. */
function moved(event, index, last, down) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -down, ArrowDown: down, Home: -index, End: last - index };
  if (!(event.key in steps)) return null;
  event.preventDefault();
  return Math.max(0, Math.min(last, index + steps[event.key]));
}

$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  stop();
  read({ text: $("prompt").value });
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("prompt-form").requestSubmit(); }
});

const positionOf = (event) => event.target.dataset?.position === undefined ? null : Number(event.target.dataset.position);
$("tokens").addEventListener("click", (event) => positionOf(event) !== null && choose(positionOf(event)));
$("tokens").addEventListener("pointerover", (event) => positionOf(event) !== null && showLines(positionOf(event)));
$("tokens").addEventListener("pointerleave", () => state.ids.length && showLines(state.chosen));
$("tokens").addEventListener("keydown", (event) => {
  const position = moved(event, state.chosen, state.ids.length - 1, 10);
  if (position !== null) choose(position, true);
});
$("surprise").addEventListener("click", (event) => positionOf(event) !== null && choose(positionOf(event)));

for (const id of ["temperature", "top-k", "top-p"]) $(id).addEventListener("input", showBars);
$("bars").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) { stop(); take(Number(button.dataset.id)); }
});
$("step").addEventListener("click", () => { stop(); take(drawFrom(distribution(), state.order)); });
$("run").addEventListener("click", async () => {
  if (!state.running) return run();
  stop();
  await read({ ids: state.ids }, { earlier: state.dropped });
});
$("back").addEventListener("click", async () => {
  stop();
  if (state.ids.length > 1) await read({ ids: state.ids.slice(0, -1) }, { earlier: state.dropped });
});

$("layer").addEventListener("change", () => openHead(Number($("layer").value), state.head));
$("head").addEventListener("change", () => openHead(state.layer, Number($("head").value)));
$("heads").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) openHead(Number(button.dataset.layer), Number(button.dataset.head));
});
$("heads").addEventListener("keydown", (event) => {
  const index = moved(event, state.layer * model.heads + state.head, model.layers * model.heads - 1, model.heads);
  if (index !== null) openHead(Math.floor(index / model.heads), index % model.heads, true);
});

const cellUnder = (event) => {
  const box = $("map").getBoundingClientRect(), T = state.ids.length;
  const place = (offset, size) => Math.max(0, Math.min(T - 1, Math.floor(offset / size * T)));
  return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
};
$("map").addEventListener("pointermove", (event) => {
  if (!state.attention) return;
  readOut(...cellUnder(event));
  showLines(state.cell[0]);
});
$("map").addEventListener("pointerleave", () => state.ids.length && showLines(state.chosen));
$("map").addEventListener("click", (event) => choose(cellUnder(event)[0]));
$("map").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!steps || !state.attention) return;
  event.preventDefault();
  const T = state.ids.length;
  readOut(...state.cell.map((value, i) => Math.max(0, Math.min(T - 1, value + steps[i]))));
  showLines(state.cell[0]);
});

window.addEventListener("resize", () => state.ids.length && showLines(state.chosen));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (state.attention) { showHeads(); showHead(); }
});

// ---------------------------------------------------------------------------------------------------- start

if (!model.layers) { // no attention in this model
  for (const title of ["head-title", "heads-title"]) $(title).closest("section").hidden = true;
}
for (let i = 0; i < model.layers; i++) $("layer").append(make("option", String(i + 1), { value: i }));
for (let i = 0; i < model.heads; i++) $("head").append(make("option", String(i + 1), { value: i }));
$("top-k").max = Math.min(201, model.tokens.length); // the last notch stands for all
$("top-k").value = $("top-k").max;
showParameters();
showBars();
// In the address stands a prompt, or #ids:1,2,3 for one that no text can spell.
const isText = answers || !location.hash.startsWith("#ids:");
const first = answers ? answers.prompt : isText ? decodeURIComponent(location.hash.slice(1)) : "";
$("prompt").value = first;
if (answers) {
  for (const id of ["prompt", "step", "run", "back"]) $(id).disabled = true;
  $("prompt-form").querySelector("button").disabled = true;
}
if (first) read({ text: first });
else if (!isText) read({ ids: location.hash.slice(5).split(",").map(Number) });
else say("Type a prompt and press Enter.");
