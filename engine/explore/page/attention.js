// Attention weights: where they lie in the packed triangles, and how they are painted.

/** Reads the weights of T positions in every layer and head, 0 … 1. */
class Attention {
  constructor(packed, layers, heads, T) {
    this.values = new Uint16Array(unpack(packed));
    this.layers = layers;
    this.heads = heads;
    this.T = T;
    this.size = T * (T + 1) / 2;
  }

  /** How much position `from` takes from position `to` (not after it). */
  weight(layer, head, from, to) {
    return this.values[this.start(layer, head) + from * (from + 1) / 2 + to] / 65535;
  }

  start(layer, head) {
    return (layer * this.heads + head) * this.size;
  }

  /** Positions that `from` looks at with the weights, the heaviest first. */
  ordered(layer, head, from) {
    const all = Array.from({ length: from + 1 }, (_, to) => [to, this.weight(layer, head, from, to)]);
    return all.sort((a, b) => b[1] - a[1]);
  }

  /** In words, for those who cannot see the picture: how far back the head looks on average. */
  summary(layer, head) {
    let distance = 0;
    for (let from = 0; from < this.T; from++) {
      for (let to = 0; to <= from; to++) distance += this.weight(layer, head, from, to) * (from - to);
    }
    return `layer ${layer + 1}, head ${head + 1}: looks back ${(distance / this.T).toFixed(1)} tokens on average`;
  }

  /** Paint a head, one pixel a weight; the root of the weight, so that small ones are seen. */
  paint(canvas, layer, head, shades) {
    const T = this.T;
    if (canvas.width !== T) canvas.width = canvas.height = T;
    const context = canvas.getContext("2d");
    const image = context.createImageData(T, T);
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(shades[0]);
    let at = this.start(layer, head);
    for (let from = 0; from < T; from++) {
      for (let to = 0; to <= from; to++) pixels[from * T + to] = shades[Math.sqrt(this.values[at++] / 65535) * 255 | 0];
    }
    context.putImageData(image, 0, 0);
  }
}

/** 256 colours from one CSS colour to another (both #rrggbb), as pixels. */
function shadesBetween(low, high) {
  const channel = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
  return Uint32Array.from({ length: 256 }, (_, step) => {
    const mixed = [0, 1, 2].map((i) => Math.round(channel(low, i) + (channel(high, i) - channel(low, i)) * step / 255));
    return (255 << 24 | mixed[2] << 16 | mixed[1] << 8 | mixed[0]) >>> 0;
  });
}
