// A conversation: a list of turns, each with the element that shows it. The server keeps nothing of it.

const { name, temperature, system } = JSON.parse($("data").textContent);
const WHO = { user: "You", assistant: "Assistant", tool: "Calculator" };
const state = {
  turns: [], // {role, content, element}
  leftOut: 0, // the first ones, for which there was no room
  editing: null, // the number of the question that the next one replaces
  stopper: null, // of the answer that is being written
};

/** What the model is to answer. */
function messages(turns) {
  const instruction = $("system").value.trim();
  const kept = turns.slice(state.leftOut).map(({ role, content }) => ({ role, content }));
  return instruction ? [{ role: "system", content: instruction }, ...kept] : kept;
}

/** Add a turn before number `place`, or at the end. */
function addTurn(role, content = "", place = state.turns.length) {
  const element = make("article", "", { class: `turn ${role}`, "aria-label": WHO[role] });
  element.append(make("h3", WHO[role]), make("p", content));
  const next = state.turns[place]?.element ?? null;
  $("talk").insertBefore(element, next);
  const turn = { role, content, element };
  state.turns.splice(place, 0, turn);
  return turn;
}

function removeFrom(place) {
  for (const turn of state.turns.splice(place)) turn.element.remove();
  state.editing = null;
  state.leftOut = 0; // what is shorter now may fit again
  markLeftOut();
}

function markLeftOut() {
  state.turns.forEach((turn, place) => turn.element.classList.toggle("gone", place < state.leftOut));
}

const note = (turn, text) => turn.element.append(make("p", text, { class: "note" }));

/** Buttons under a turn; their names begin with what they show, and say which turn is meant. */
function addButtons(turn, actions) {
  const row = make("div", "", { class: "buttons" });
  for (const [text, act] of actions) {
    const button = make("button", text, { type: "button", "aria-label": `${text}: ${turn.content.slice(0, 40)}` });
    button.addEventListener("click", act);
    row.append(button);
  }
  turn.element.append(row);
  return row;
}

/** While an answer is written, only Stop and typing go on; the log is read out when it is complete. */
function setBusy(busy) {
  $("talk").setAttribute("aria-busy", busy);
  for (const button of document.querySelectorAll("button")) button.disabled = busy !== (button.id === "stop");
}

/** The JSON of server-sent events, until [DONE]. Throws an Error where they break off before. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off; is the program still running?");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** Change the page; who saw where to type sees it afterwards too. */
function inSight(change) {
  const form = $("question-form"), seen = form.getBoundingClientRect().bottom < innerHeight + 1;
  const result = change();
  if (seen) form.scrollIntoView({ block: "nearest" });
  return result;
}

/** Show a part of an answer: its text, calls of the calculator before it, what was left out, a cut. */
function take(turn, event) {
  if (event.left_out_messages) {
    state.leftOut += event.left_out_messages;
    markLeftOut();
    note(state.turns[state.leftOut - 1], "The block is full: what stands above is left out.");
  }
  for (const { role, content } of event.tool_turns ?? []) addTurn(role, content, state.turns.indexOf(turn));
  turn.content += event.choices[0].delta.content ?? "";
  turn.element.querySelector("p").textContent = turn.content;
  if (event.choices[0].finish_reason === "length") note(turn, "(stopped: it may not be longer)");
}

/** Have the last question answered. Where that fails, or nothing is said, the question can be sent again. */
async function answer() {
  const asked = state.turns.length - 1;
  const question = { model: name, messages: messages(state.turns), temperature: Number($("temperature").value), stream: true };
  const turn = addTurn("assistant");
  state.stopper = new AbortController();
  setBusy(true);
  say("Answering …");
  $("question-form").scrollIntoView({ block: "nearest" });
  let problem = "";
  try {
    const response = await post("/v1/chat/completions", question, { signal: state.stopper.signal });
    for await (const event of eventsOf(response)) inSight(() => take(turn, event));
  } catch (error) {
    problem = error.name === "AbortError" ? "" : error.message;
    if (turn.content) note(turn, "(stopped)");
  }
  if (turn.content.trim()) await finish(turn, asked);
  else takeBack(asked);
  state.stopper = null;
  setBusy(false);
  say(problem || (turn.content.trim() ? "Answered." : "There was no answer."), Boolean(problem));
}

/** What can be done with a finished answer. */
async function finish(turn, asked) {
  const place = state.turns.indexOf(turn);
  const row = inSight(() => addButtons(turn, [["Retry", () => retry(asked)]]));
  try {
    const { tokens } = await (await post("/tokenize", { messages: messages(state.turns.slice(0, place)) })).json();
    row.append(make("a", "Look inside", { href: `/explore#ids:${tokens.join()}`, target: "_blank", rel: "noopener" }));
  } catch {
    // The program has ended: the next question says so.
  }
}

/** A question that got no answer goes back to where it was typed. */
function takeBack(asked) {
  $("question").value ||= state.turns[asked].content;
  removeFrom(asked);
}

function ask() {
  const text = $("question").value.trim();
  if (!text || state.stopper) return;
  if (state.editing !== null) removeFrom(state.editing);
  const place = state.turns.length;
  const turn = addTurn("user", text);
  addButtons(turn, [["Edit", () => edit(place)]]);
  $("question").value = "";
  answer();
}

function retry(asked) {
  removeFrom(asked + 1);
  answer();
  $("question").focus();
}

function edit(place) {
  state.editing = place;
  $("question").value = state.turns[place].content;
  $("question").focus();
  say("Sending this replaces the message and all that follows; Escape leaves it as it is.");
}

/** Escape: end the answer that is being written, or leave a message as it was. */
function escape() {
  if (state.stopper) state.stopper.abort();
  else if (state.editing !== null) {
    state.editing = null;
    $("question").value = "";
    say("");
  }
}

$("question-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") escape(); });
$("stop").addEventListener("click", () => { escape(); $("question").focus(); });
$("new").addEventListener("click", () => { removeFrom(0); say("A new conversation."); $("question").focus(); });
$("temperature").addEventListener("input", showTemperature);

function showTemperature() {
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
}

// ---------------------------------------------------------------------------------------------------- start

document.title = `${name} – plainGPT chat`;
$("about").textContent = `${name} answers, on this machine alone`;
$("temperature").max = Math.max(2, temperature);
$("temperature").value = temperature;
$("system").value = system ?? "";
showTemperature();
$("question").focus();
