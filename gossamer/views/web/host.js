// @ts-check
// The host of an exported page: the model that a view talks to, over state baked into the file.
// A host that speaks to a server is another module with the same model behind another entry.

/** The part of a widget's model that views use; nothing listens at the other end. */
class PageModel {
  constructor(state) {
    this.static = true;
    this.state = state;
    this.listeners = new Map();
  }

  get(name) {
    return this.state[name];
  }

  set(name, value) {
    if (JSON.stringify(this.state[name]) === JSON.stringify(value)) return;
    this.state[name] = value;
    for (const listener of this.listeners.get(`change:${name}`) ?? []) listener();
  }

  save_changes() {}

  send() {}

  on(event, listener) {
    this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]);
  }

  off(event, listener) {
    const kept = (this.listeners.get(event) ?? []).filter((one) => one !== listener);
    this.listeners.set(event, kept);
  }
}

/** Draws a view into the page with the state and the data that stand in it. */
export async function start(render) {
  performance.mark("gossamer:start");
  const text = (id) => document.getElementById(id).textContent;
  const packed = bytes(atob(text("data")));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = new DataView(await new Response(stream).arrayBuffer());
  performance.mark("gossamer:unpacked");
  document.getElementById("data").remove();
  const model = new PageModel({ ...JSON.parse(text("state")), data });
  render({ model, el: document.getElementById("view"), signal: new AbortController().signal });
}

function bytes(letters) {
  const array = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) array[i] = letters.charCodeAt(i);
  return array;
}
