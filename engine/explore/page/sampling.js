// The distribution that the next token is drawn from: what next_token_probabilities computes, in doubles.

/** The bytes behind base64. */
function unpack(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes.buffer;
}

/** Token numbers, the most probable first; of equal ones the lower number first. */
function ranking(logits) {
  return Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
}

/** Probabilities of all tokens after temperature, top-k (null: all) and top-p (1: all), in this order. */
function probabilitiesOf(logits, order, temperature, topK, topP) {
  const result = new Float64Array(logits.length);
  if (temperature === 0) {
    result[order[0]] = 1;
    return result;
  }
  const least = topK === null || topK >= logits.length ? -Infinity : logits[order[topK - 1]];
  const highest = logits[order[0]];
  let sum = 0;
  for (let i = 0; i < logits.length; i++) {
    if (logits[i] >= least) sum += result[i] = Math.exp((logits[i] - highest) / temperature);
  }
  for (let i = 0; i < result.length; i++) result[i] /= sum;
  if (topP < 1) {
    let before = 0, kept = 0;
    for (const i of order) {
      if (before >= topP) result[i] = 0;
      else { before += result[i]; kept += result[i]; }
    }
    for (let i = 0; i < result.length; i++) result[i] /= kept;
  }
  return result;
}

/** One token number, drawn. */
function drawFrom(probabilities, order) {
  let left = Math.random();
  for (const i of order) {
    left -= probabilities[i];
    if (left < 0) return i;
  }
  return order[0];
}
