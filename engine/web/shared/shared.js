// What all pages use. Text of a model only ever goes into textContent.

const $ = (id) => document.getElementById(id);

/** An element with text and attributes. */
function make(tag, text = "", attributes = {}) {
  const svg = ["path", "rect", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A sentence for the person at the page. */
function say(sentence, isError = false) {
  $("status").textContent = sentence;
  $("status").className = isError ? "error" : "";
}

/** The server's response to a question. Throws an Error with a sentence, or an AbortError. */
async function post(path, question, options = {}) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body: JSON.stringify(question), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The program does not answer; is it still running?");
  }
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}
