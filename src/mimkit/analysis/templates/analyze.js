"use strict";
(() => {
  // What a mark is: the nearest one to the pointer, or the next one by arrow key.
  const tip = document.getElementById("tip");
  const REACH = 22; // CSS pixels
  let shown = null;

  function say(mark, x, y) {
    if (shown) shown.classList.remove("on");
    shown = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip;
    const width = tip.offsetWidth;
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - width - 8)) + "px";
    tip.style.top = Math.max(4, y - tip.offsetHeight - 12) + "px";
  }

  const centre = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2, Math.hypot(box.width, box.height) / 2];
  };

  document.querySelectorAll(".plot").forEach((plot) => {
    const marks = [...plot.querySelectorAll("[data-tip]")];
    if (!marks.length) return;
    let at = -1;
    const point = (event) => {
      let best = null, least = Infinity;
      marks.forEach((mark, place) => {
        const [x, y, size] = centre(mark);
        const away = Math.hypot(x - event.clientX, y - event.clientY);
        if (away <= Math.min(least, Math.max(REACH, size))) { least = away; best = mark; at = place; }
      });
      say(best, event.clientX, event.clientY);
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", () => say(null));
    plot.addEventListener("blur", () => say(null));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (event.key === "Escape") say(null);
      if (!step) return;
      event.preventDefault();
      at = (at + step + marks.length) % marks.length;
      say(marks[at], ...centre(marks[at]));
    });
  });

  // Attention maps: deflated float32 maxima, then 8-bit roots of shares of them.
  const held = document.getElementById("viewer-data");
  if (!held) return;
  const models = JSON.parse(held.textContent);
  const box = document.getElementById("viewer");
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const choice = (name) => box.querySelector(`[data-choice="${name}"]`);
  const canvas = { image: part("image"), map: part("map") };
  const state = { model: 0, image: 0, layer: 0, head: 0, row: 0, column: 0 };
  const unpacked = new Map(), pictures = new Map();

  async function unpack(entry, image) {
    const key = entry.data[image];
    if (!unpacked.has(key)) {
      const packed = Uint8Array.from(atob(key), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      const raw = await new Response(stream).arrayBuffer();
      const maps = entry.heads * entry.queries[0] * entry.queries[1];
      unpacked.set(key, { top: new Float32Array(raw, 0, maps), roots: new Uint8Array(raw, 4 * maps) });
    }
    return unpacked.get(key);
  }

  function load(source) {
    if (!pictures.has(source)) {
      const made = new Image();
      pictures.set(source, new Promise((done) => { made.onload = () => done(made); made.src = source; }));
    }
    return pictures.get(source);
  }

  const STOPS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
  function colour(value) {
    const at = (value / 255) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
    return STOPS[low].map((from, i) => from + (at - low) * (STOPS[low + 1][i] - from));
  }

  function paint(target, roots, start, [h, w]) {
    target.width = w; target.height = h;
    const context = target.getContext("2d"), pixels = context.createImageData(w, h);
    for (let i = 0; i < h * w; i++) {
      pixels.data.set([...colour(roots[start + i]), 255], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
  }

  const entryOf = () => models[state.model].layers[state.layer];
  const startOf = (entry, head) => {
    const [rows, columns] = entry.queries;
    return ((head * rows + state.row) * columns + state.column);
  };

  async function draw() {
    const model = models[state.model], entry = entryOf();
    const [data, picture] = await Promise.all([unpack(entry, state.image), load(model.images[state.image])]);
    if (entry !== entryOf() || model !== models[state.model]) return; // chosen anew meanwhile
    const [h, w] = entry.grid, size = h * w, scale = 2;
    for (const one of [canvas.image, canvas.map]) { one.width = picture.width * scale; one.height = picture.height * scale; }
    const context = canvas.image.getContext("2d");
    context.drawImage(picture, 0, 0, canvas.image.width, canvas.image.height);
    const cell = [canvas.image.height / h, canvas.image.width / w];
    const outline = (on) => {
      const x = state.column * entry.step * cell[1], y = state.row * entry.step * cell[0];
      on.lineWidth = 6; on.strokeStyle = "#000"; on.strokeRect(x, y, cell[1], cell[0]);
      on.lineWidth = 3; on.strokeStyle = "#fff"; on.strokeRect(x, y, cell[1], cell[0]);
    };
    outline(context);
    const small = document.createElement("canvas"), query = startOf(entry, state.head);
    paint(small, data.roots, query * size, entry.grid);
    const over = canvas.map.getContext("2d");
    over.filter = "grayscale(1)";
    over.drawImage(picture, 0, 0, canvas.map.width, canvas.map.height);
    over.filter = "none";
    over.globalAlpha = 0.78;
    over.imageSmoothingEnabled = false;
    over.drawImage(small, 0, 0, canvas.map.width, canvas.map.height);
    over.globalAlpha = 1;
    outline(over);
    const most = data.roots.subarray(query * size, (query + 1) * size).indexOf(255);
    const where = `row ${state.row * entry.step + 1}, column ${state.column * entry.step + 1}`;
    part("said").textContent = `${model.model}, layer ${entry.layer}, head ${state.head}: from ${where}, most attention ` +
      `(${(100 * data.top[query]).toFixed(1)} %) goes to row ${Math.floor(most / w) + 1}, column ${(most % w) + 1}; ` +
      `the same everywhere would be ${(100 / size).toFixed(2)} %.`;
    canvas.map.setAttribute("aria-label", "Attention map. " + part("said").textContent);
    box.dataset.drawn = [state.model, state.image, state.layer, state.head, state.row, state.column].join("-");
    drawHeads(entry, data, size);
  }

  function drawHeads(entry, data, size) {
    const list = part("heads");
    if (list.children.length !== entry.heads) {
      list.replaceChildren(...Array.from({ length: entry.heads }, (_, head) => {
        const button = document.createElement("button");
        button.type = "button";
        button.append(document.createElement("canvas"), `head ${head}`);
        button.addEventListener("click", () => { state.head = head; choice("head").value = head; draw(); });
        return button;
      }));
    }
    [...list.children].forEach((button, head) => {
      paint(button.firstChild, data.roots, startOf(entry, head) * size, entry.grid);
      button.setAttribute("aria-pressed", head === state.head);
    });
  }

  function fill(name, texts) {
    const select = choice(name);
    select.replaceChildren(...texts.map((text, value) => new Option(text, value)));
    state[name] = Math.min(state[name], texts.length - 1);
    select.value = state[name];
  }

  function settle() {
    const model = models[state.model];
    fill("image", model.names);
    fill("layer", model.layers.map((entry) => entry.layer));
    fill("head", Array.from({ length: entryOf().heads }, (_, head) => head));
    const [rows, columns] = entryOf().queries;
    state.row = Math.min(state.row, rows - 1);
    state.column = Math.min(state.column, columns - 1);
    draw();
  }

  function middle() {
    const [rows, columns] = entryOf().queries;
    state.row = Math.floor(rows / 2);
    state.column = Math.floor(columns / 2);
  }

  const place = (event, target) => {
    const area = target.getBoundingClientRect(), [h, w] = entryOf().grid;
    const inside = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    return [inside((event.clientY - area.top) / area.height, h), inside((event.clientX - area.left) / area.width, w)];
  };

  canvas.image.addEventListener("pointerdown", (event) => {
    const [row, column] = place(event, canvas.image), entry = entryOf();
    state.row = Math.min(Math.round(row / entry.step), entry.queries[0] - 1);
    state.column = Math.min(Math.round(column / entry.step), entry.queries[1] - 1);
    draw();
  });
  canvas.image.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [rows, columns] = entryOf().queries;
    state.row = Math.max(0, Math.min(rows - 1, state.row + move[0]));
    state.column = Math.max(0, Math.min(columns - 1, state.column + move[1]));
    draw();
  });
  canvas.map.addEventListener("pointermove", async (event) => {
    const entry = entryOf(), data = await unpack(entry, state.image), [h, w] = entry.grid;
    const [row, column] = place(event, canvas.map), query = startOf(entry, state.head);
    const share = data.top[query] * (data.roots[query * h * w + row * w + column] / 255) ** 2;
    canvas.map.dataset.tip = `row ${row + 1}, column ${column + 1}: ${(100 * share).toPrecision(2)} %`;
    say(canvas.map, event.clientX, event.clientY);
  });
  canvas.map.addEventListener("pointerleave", () => say(null));
  for (const name of ["model", "image", "layer", "head"]) {
    choice(name).addEventListener("change", (event) => { state[name] = Number(event.target.value); settle(); });
  }
  fill("model", models.map((model) => model.model));
  state.layer = models[0].layers.length - 1;
  middle();
  settle();
})();
