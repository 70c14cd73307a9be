// The page: one state, one function that draws each part of it. Text of the model only ever goes into textContent.

const BARS = 15, ROWS = 12, LINES = 40, FAINT = 0.02;
const { model, answers } = JSON.parse($("data").textContent);
const state = {
  ids: [], dropped: [], surprise: [], logits: null, order: null, attention: null,
  layer: 0, head: 0, chosen: 0, running: false, asked: 0,
};

/** A token as one can see it: spaces as dots, line breaks as arrows. */
function shown(id) {
  return model.tokens[id].replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

/** A token as a screen reader can say it. */
function spoken(id) {
  const names = { " ": "space", "\n": "line break", "\t": "tab", "": "empty" };
  return names[model.tokens[id]] ?? `“${model.tokens[id]}”`;
}

const percent = (value) => value >= 0.0005 || value === 0 ? `${(100 * value).toFixed(1)} %` : `${(100 * value).toPrecision(1)} %`;

/** Ask the server, or look it up where the page came without one. Throws an Error with a sentence. */
async function ask(path, question) {
  if (answers) {
    return { "/inspect": () => answers.inspect, "/layers": () => answers.layers[question.position],
      "/neighbours": () => answers.neighbours[question.id] ?? { neighbours: [] } }[path]();
  }
  return (await post(path, question)).json();
}

/** Have the model read a text or ids, then show everything. An answer that a newer question overtook is left out. */
async function read(question, { earlier = [], choose = null } = {}) {
  const number = ++state.asked;
  let seen;
  try {
    seen = await ask("/inspect", question);
  } catch (error) {
    stop();
    say(error.message, true);
    return false;
  }
  if (number !== state.asked) return false;
  state.ids = seen.ids;
  state.dropped = earlier.concat(seen.dropped);
  state.surprise = seen.surprise;
  state.logits = new Float32Array(unpack(seen.logits));
  state.order = ranking(state.logits);
  state.attention = seen.attention ? new Attention(seen.attention, model.layers, model.heads, seen.ids.length) : null;
  state.chosen = Math.min(choose ?? seen.ids.length - 1, seen.ids.length - 1);
  const left = state.dropped.length ? ` ${state.dropped.length} earlier ones are out of its sight.` : "";
  say(`${state.ids.length} tokens, of at most ${model.limit}.${left}`);
  showTokens();
  showBars();
  showSurprise();
  if (state.attention) showHeads();
  showChosen();
  return true;
}

// ---------------------------------------------------------------------------------------------------- the text

function showTokens() {
  const box = $("tokens");
  box.replaceChildren();
  if (state.dropped.length) box.append(make("span", state.dropped.map((id) => model.tokens[id]).join(""), { class: "earlier" }));
  state.ids.forEach((id, position) => {
    const nats = state.surprise[position];
    const button = make("button", shown(id), { type: "button", class: "token", "data-position": position });
    button.setAttribute("aria-label", `${position}: ${spoken(id)}` + (nats === null ? "" : `, surprise ${nats.toFixed(2)} nats`));
    if (nats !== null) button.style.backgroundColor = `rgba(var(--alarm), ${Math.min(0.75, nats / 10)})`;
    box.append(button);
    if (model.tokens[id].endsWith("\n")) box.append(make("span", "", { class: "break" }));
  });
}

const tokenButton = (position) => $("tokens").querySelector(`[data-position="${position}"]`);

/** Lines from a token to those that the chosen head looks at from there. */
function showLines(from) {
  $("lines").replaceChildren();
  if (!state.attention || !tokenButton(from)) return;
  const frame = $("strip").getBoundingClientRect();
  const top = (position) => {
    const box = tokenButton(position).getBoundingClientRect();
    return [box.left + box.width / 2 - frame.left, box.top - frame.top];
  };
  const [x, y] = top(from);
  const looks = state.attention.ordered(state.layer, state.head, from);
  const least = Math.min(FAINT, looks[0][1] / 4); // where attention is spread thin, thin lines are all there is
  for (const [to, weight] of looks.slice(0, LINES)) {
    if (weight < least) break;
    const [u, v] = top(to);
    const lift = Math.min(48, 12 + Math.abs(x - u) / 5);
    const path = to === from
      ? `M ${x - 4} ${y} C ${x - 12} ${y - 20}, ${x + 12} ${y - 20}, ${x + 4} ${y}`
      : `M ${x} ${y} C ${x} ${y - lift}, ${u} ${v - lift}, ${u} ${v}`;
    $("lines").append(make("path", "", { d: path, "stroke-width": 1 + 5 * weight, "stroke-opacity": Math.min(1, 0.15 + weight) }));
  }
}

/** Everything that depends on the chosen token. */
function showChosen() {
  for (const button of $("tokens").querySelectorAll("button")) {
    const here = Number(button.dataset.position) === state.chosen;
    button.setAttribute("aria-pressed", here);
    button.tabIndex = here ? 0 : -1;
  }
  for (const rect of $("surprise").querySelectorAll("rect")) {
    rect.classList.toggle("chosen", Number(rect.dataset.position) === state.chosen);
  }
  for (const place of document.querySelectorAll(".chosen:not(rect)")) place.textContent = shown(state.ids[state.chosen]);
  showLines(state.chosen);
  showHead();
  if (!state.running) { showLayers(); showNear(); }
}

function choose(position, focus = false) {
  state.chosen = Math.max(0, Math.min(state.ids.length - 1, position));
  showChosen();
  if (focus) tokenButton(state.chosen).focus();
}

// ---------------------------------------------------------------------------------------------------- next token

function sampling() {
  const k = Number($("top-k").value);
  return { temperature: Number($("temperature").value), topK: k >= Number($("top-k").max) ? null : k, topP: Number($("top-p").value) };
}

function distribution() {
  const { temperature, topK, topP } = sampling();
  return probabilitiesOf(state.logits, state.order, temperature, topK, topP);
}

function showBars() {
  const { temperature, topK, topP } = sampling();
  $("temperature-value").textContent = temperature.toFixed(2);
  $("top-k-value").textContent = topK ?? "all";
  $("top-p-value").textContent = topP.toFixed(2);
  if (!state.logits) return;
  const probabilities = distribution();
  const kept = probabilities.reduce((count, value) => count + (value > 0), 0);
  $("kept").textContent = `${kept.toLocaleString("en")} of ${probabilities.length.toLocaleString("en")} tokens can be drawn`;
  const bars = $("bars");
  while (bars.children.length < Math.min(BARS, probabilities.length)) {
    const button = make("button", "", { type: "button" });
    const track = make("span", "", { class: "track" });
    track.append(make("span"));
    button.append(make("span", "", { class: "name" }), track, make("span", "", { class: "figure" }));
    const row = make("li");
    row.append(button);
    bars.append(row);
  }
  [...bars.children].forEach((row, rank) => {
    const id = state.order[rank], value = probabilities[id], button = row.firstChild;
    button.dataset.id = id;
    button.dataset.probability = value;
    button.disabled = Boolean(answers);
    button.setAttribute("aria-label", `${spoken(id)}, ${percent(value)}`);
    const [name, track, figure] = button.children;
    name.textContent = shown(id);
    track.firstChild.style.width = `${100 * value}%`;
    figure.textContent = percent(value);
  });
}

/** Append a token and read again. While it runs, attention is left out. */
function take(id) {
  return read({ ids: [...state.ids, id], attention: !state.running }, { earlier: state.dropped });
}

async function run() {
  state.running = true;
  $("run").textContent = "Stop";
  $("run").setAttribute("aria-pressed", "true");
  while (state.running && await take(drawFrom(distribution(), state.order)));
}

function stop() {
  state.running = false;
  $("run").textContent = "Run";
  $("run").setAttribute("aria-pressed", "false");
}

// ---------------------------------------------------------------------------------------------------- attention

function shades() {
  const style = getComputedStyle(document.documentElement);
  return shadesBetween(style.getPropertyValue("--low").trim(), style.getPropertyValue("--high").trim());
}

/** The small pictures of all heads; the buttons stay while the shape does. */
function showHeads() {
  const box = $("heads"), colors = shades();
  if (!box.children.length) {
    box.style.gridTemplateColumns = `repeat(${model.heads}, minmax(0, 1fr))`;
    for (let layer = 0; layer < model.layers; layer++) {
      for (let head = 0; head < model.heads; head++) {
        const button = make("button", "", { type: "button", "data-layer": layer, "data-head": head });
        button.append(make("canvas", "", { "aria-hidden": "true" }));
        box.append(button);
      }
    }
  }
  for (const button of box.children) {
    const layer = Number(button.dataset.layer), head = Number(button.dataset.head);
    state.attention.paint(button.firstChild, layer, head, colors);
    button.setAttribute("aria-label", state.attention.summary(layer, head));
  }
}

/** The chosen head: large, and as a table of where it looks from the chosen token. */
function showHead() {
  for (const button of $("heads").children) {
    const here = Number(button.dataset.layer) === state.layer && Number(button.dataset.head) === state.head;
    button.setAttribute("aria-pressed", here);
    button.tabIndex = here ? 0 : -1;
  }
  $("layer").value = state.layer;
  $("head").value = state.head;
  if (!state.attention) return;
  state.attention.paint($("map"), state.layer, state.head, shades());
  $("map").setAttribute("aria-label", `Heat map of ${state.attention.summary(state.layer, state.head)}`);
  $("from").textContent = `${shown(state.ids[state.chosen])} (position ${state.chosen})`;
  const rows = state.attention.ordered(state.layer, state.head, state.chosen).slice(0, ROWS).map(([to, weight]) =>
    row([to, shown(state.ids[to]), weight.toFixed(4)], ["number", "name", "number"]));
  $("weights").tBodies[0].replaceChildren(...rows);
  readOut(state.chosen, state.chosen);
}

function openHead(layer, head, focus = false) {
  state.layer = Math.max(0, Math.min(model.layers - 1, layer));
  state.head = Math.max(0, Math.min(model.heads - 1, head));
  showHead();
  showLines(state.chosen);
  if (focus) $("heads").children[state.layer * model.heads + state.head].focus();
}

/** Say what the cell of the heat map holds. */
function readOut(from, to) {
  state.cell = [from, to];
  const weight = to > from ? 0 : state.attention.weight(state.layer, state.head, from, to);
  const note = to > from ? " (it lies ahead)" : "";
  $("readout").textContent = `${from} ${shown(state.ids[from])} takes ${weight.toFixed(4)} from ${to} ${shown(state.ids[to])}${note}`;
}

// ---------------------------------------------------------------------------------------------------- tables

function row(cells, classes = []) {
  const line = make("tr");
  cells.forEach((cell, i) => line.append(make("td", String(cell), classes[i] ? { class: classes[i] } : {})));
  return line;
}

function showSurprise() {
  const known = state.surprise.filter((nats) => nats !== null);
  const mean = known.reduce((sum, nats) => sum + nats, 0) / known.length;
  $("loss").textContent = known.length
    ? `Loss of this text: ${mean.toFixed(3)} nats per token (perplexity ${Math.exp(mean).toFixed(1)}; guessing would be ${Math.log(model.tokens.length).toFixed(2)} nats).`
    : "One token alone has no loss: the first is given.";
  const highest = Math.max(1, ...known), count = state.ids.length;
  const svg = $("surprise"); // a bar is 24 pixels wide, or as wide as the page allows, but at least 6
  svg.setAttribute("viewBox", `0 0 ${24 * count} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.width = `${24 * count}px`;
  svg.style.minWidth = `${6 * count}px`;
  svg.replaceChildren(...state.surprise.map((nats, position) => {
    const height = nats === null ? 0 : 98 * nats / highest;
    const rect = make("rect", "", { x: 24 * position + 1, y: 100 - height, width: 22, height, "data-position": position });
    rect.append(make("title", `${position} ${shown(state.ids[position])}: ${nats === null ? "given" : nats.toFixed(2) + " nats"}`));
    return rect;
  }));
  $("surprise-table").tBodies[0].replaceChildren(...state.surprise.map((nats, position) =>
    row([position, shown(state.ids[position]), nats === null ? "given" : nats.toFixed(3), nats === null ? "" : percent(Math.exp(-nats))],
      ["number", "name", "number", "number"])));
}

async function showLayers() {
  const position = state.chosen, ids = state.ids;
  const answer = await ask("/layers", { ids, position }).catch((error) => say(error.message, true));
  if (!answer || position !== state.chosen || ids !== state.ids) return;
  $("layers").tBodies[0].replaceChildren(...answer.layers.map((guesses, layer) => {
    const line = make("tr");
    line.append(make("th", layer ? `block ${layer}` : "embedding", { scope: "row" }));
    for (const [id, value] of guesses) {
      const cell = make("td");
      cell.append(make("span", shown(id), { class: "name" }), " ", make("span", percent(value), { class: "share" }));
      cell.style.backgroundColor = `color-mix(in srgb, var(--blue) ${Math.round(50 * value)}%, transparent)`;
      line.append(cell);
    }
    return line;
  }));
}

async function showNear() {
  const id = state.ids[state.chosen];
  const answer = await ask("/neighbours", { id }).catch((error) => say(error.message, true));
  if (!answer || id !== state.ids[state.chosen]) return;
  $("near").replaceChildren(...answer.neighbours.map(([other, cosine]) => {
    const item = make("li");
    item.append(make("span", shown(other), { class: "name" }), " ", make("span", cosine.toFixed(2), { class: "figure" }));
    return item;
  }));
}

function showParameters() {
  const total = Object.values(model.parameters).reduce((sum, count) => sum + count, 0);
  const reused = (name) => name === "unembedding" && model.tied;
  const entries = Object.entries(model.parameters).filter(([name, count]) => count || reused(name));
  const rows = entries.map(([name, count]) => row([
    name, count.toLocaleString("en"), reused(name) ? "the embedding, again" : percent(count / total),
  ], ["", "number", "number"]));
  $("count").tBodies[0].replaceChildren(...rows, row(["all", total.toLocaleString("en"), ""], ["", "number", "number"]));
  document.title = `${model.name} – plainGPT explorer`;
  $("about").textContent = `${model.name}: ${model.blocks} layers, ${model.heads} heads, ${model.width} wide, ` +
    `${model.tokens.length.toLocaleString("en")} tokens, ${total.toLocaleString("en")} parameters`;
}
