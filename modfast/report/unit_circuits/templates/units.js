// The picture of units: lays them out, draws them, and tells what each is. Names go into the page as text only.
(() => {
  const find = id => document.getElementById(id);
  const data = JSON.parse(find("unit-data").textContent);
  const controls = find("controls"), stage = find("stage"), picture = find("picture"), facts = find("facts");
  const clusters = data.clusters;
  find("live").hidden = false;

  // --- Which units there are: position -> column, number in the column, place in its order of drawing.

  const columns = [];
  let total = 0;
  for (const space of data.spaces) {
    const own = Array.from({length: space.size}, (_, index) => total + index);
    const rank = position => clusters[position] < 0 ? Infinity : clusters[position];
    if (clusters) own.sort((a, b) => rank(a) === rank(b) ? a - b : rank(a) - rank(b));
    columns.push({...space, first: total, order: own});
    total += space.size;
  }
  const columnOf = new Int32Array(total);
  columns.forEach((column, index) => columnOf.fill(index, column.first, column.first + column.size));
  // All positions as one drawn after another: the order of the keys "previous" and "next".
  const sequence = columns.flatMap(column => column.order);
  const turn = new Int32Array(total);
  sequence.forEach((position, index) => { turn[position] = index; });

  const circuits = data.circuits.map(circuit => ({
    name: circuit.name, scores: circuit.scores, kept: Uint8Array.from(circuit.kept, Number),
  }));
  const together = {
    name: "all circuits together",
    scores: Array.from({length: total}, (_, position) => circuits.reduce((most, {scores}) => {
      const score = scores[position];
      return score !== null && (most === null || Math.abs(score) > Math.abs(most)) ? score : most;
    }, null)),
    kept: Uint8Array.from({length: total}, (_, position) =>
      Number(circuits.some(each => each.scores[position] !== null && each.kept[position]))),
  };

  // --- What is chosen.

  let circuit, shown, largest, keptShown;
  const where = {x: new Float64Array(total), y: new Float64Array(total)};
  let layout = null, current = -1, pinned = -1, hovered = -1;

  function choose() {
    const chosen = new FormData(controls), which = chosen.get("circuit");
    circuit = which === "all" ? together : circuits[Number(which ?? 0)];
    const allowed = new Set(chosen.getAll("cluster").map(Number)), keptOnly = chosen.has("kept");
    const byColumn = chosen.get("beside") === "column";
    shown = new Uint8Array(total);
    keptShown = 0;
    largest = columns.map(() => -1);
    for (let position = 0; position < total; position++) {
      const asked = circuit.scores[position] !== null, kept = asked && circuit.kept[position];
      // The largest score of all units, not of those shown: marks keep their size when others are hidden.
      const column = byColumn ? columnOf[position] : 0;
      const size = Math.abs(circuit.scores[position] ?? 0), most = largest[column];
      if (asked && (most < 0 || size > Math.abs(circuit.scores[most]))) largest[column] = position;
      if ((clusters && !allowed.has(clusters[position])) || (keptOnly && !kept)) continue;
      shown[position] = 1;
      keptShown += kept ? 1 : 0;
    }
    if (!byColumn) largest.fill(largest[0]);
  }

  // --- Where units are: columns from left to right, or where it is narrow from top to bottom.

  function place() {
    const width = Math.max(stage.clientWidth, 200);
    layout = layUnitsOut(columns, width);
    layout.blocks.forEach(block => block.column.order.forEach((position, index) => {
      const major = layout.upright ? Math.floor(index / block.down) : index % block.across;
      const minor = layout.upright ? index % block.down : Math.floor(index / block.across);
      where.x[position] = block.x + (major + 0.5) * block.cell;
      where.y[position] = block.y + (minor + 0.5) * block.cell;
    }));
  }

  // --- Drawing: one path for all marks of one look, so that ten thousand units are few elements.

  function draw() {
    picture.setAttribute("viewBox", `0 0 ${layout.width} ${layout.height}`);
    picture.replaceChildren();
    const paths = new Map();
    layout.blocks.forEach((block, index) => {
      const top = largest[index] < 0 ? 0 : Math.abs(circuit.scores[largest[index]]);
      let kept = 0, asked = 0;
      for (const position of block.column.order) {
        const score = circuit.scores[position];
        asked += score === null ? 0 : 1;
        kept += score !== null && circuit.kept[position] ? 1 : 0;
        if (!shown[position]) continue;
        const [look, line] = mark(position, score, top, block.cell);
        paths.set(look, (paths.get(look) ?? "") + line);
      }
      const [first, second] = heading(block, `${grouped(kept)} of ${grouped(asked)} kept`);
      add("text", {x: block.x, y: block.y - 22, class: "name"}, first);
      add("text", {x: block.x, y: block.y - 8, class: "tick"}, second);
      add("title", {}, block.column.name, picture.lastChild.previousSibling);
    });
    for (const [look, d] of paths) add("path", {class: `unit ${look}`, d});
    add("circle", {class: "unit-ring", r: 0, visibility: "hidden"});
    tellShown();
    ring();
  }

  function mark(position, score, top, cell) {
    const x = where.x[position], y = where.y[position];
    const write = number => String(Math.round(number * 100) / 100);
    if (score === null) return ["unasked", `M${write(x - 2)} ${write(y)}h4`];
    const colour = clusters === null ? "lone" : clusters[position] < 0 ? "crossing" : `c${clusters[position] % 6}`;
    const r = Math.max(0.4 * cell * Math.sqrt(top ? Math.abs(score) / top : 0), Math.min(0.16 * cell, 3));
    const look = `${circuit.kept[position] ? "kept" : "out"} ${colour}`;
    if (score < 0) {  // a diamond of the same area
      const d = write(1.2533 * r), back = `-${d}`;
      return [`below ${look}`, `M${write(x)} ${write(y - 1.2533 * r)}l${d} ${d}l${back} ${d}l${back} ${back}Z`];
    }
    const w = write(r), across = write(2 * r);
    return [look, `M${write(x - r)} ${write(y)}a${w} ${w} 0 1 0 ${across} 0a${w} ${w} 0 1 0 -${across} 0`];
  }

  function add(tag, attributes, text, parent = picture) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
  }

  const brief = briefNames(columns);
  const heading = (block, count) => [fittedName(brief(block.column.name), block.width + 14), count];

  // Within a sentence a name that is written from right to left, or holds marks of direction, would turn round
  // what comes after it: between these two signs it cannot.
  const turns = /[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefc]|[\ud802-\ud803\ud83a-\ud83b]/;
  const apart = name => turns.test(name) ? `\u2068${name}\u2069` : name;
  const grouped = number => number.toLocaleString("en");
  const minus = text => String(text).replaceAll("-", "\u2212");
  const scoreText = score => score === null ? "not asked for" : minus(Number(score.toPrecision(3)));

  function tellShown() {
    const count = shown.reduce((sum, each) => sum + each, 0);
    const most = largest.reduce((best, position) => position >= 0 && (best < 0 ||
      Math.abs(circuit.scores[position]) > Math.abs(circuit.scores[best])) ? position : best, -1);
    const whose = circuit === together ? "All circuits together" : `Circuit of ${apart(circuit.name)}`;
    const scale = most < 0 ? "" : ` Largest score: ${scoreText(circuit.scores[most])}, ${title(most)}.`;
    find("shown").textContent =
      `${whose}: ${grouped(count)} of ${grouped(total)} unit${total === 1 ? "" : "s"} shown, ${grouped(keptShown)} kept.${scale}`;
    stage.setAttribute("aria-label", `Picture of units. ${find("shown").textContent}`);
  }

  // --- Telling what one unit is.

  function title(position) {
    const column = columns[columnOf[position]];
    return `${apart(column.name)}, unit ${position - column.first}`;
  }

  function lines(position) {
    const column = columns[columnOf[position]], score = circuit.scores[position];
    const inNetwork = column.start + position - column.first;
    const keeping = circuits.filter(each => each.scores[position] !== null && each.kept[position]);
    const state = score === null ? "not asked for" : circuit.kept[position] ? "kept" : "not kept";
    const cluster = clusters === null ? [] :
      [clusters[position] < 0 ? "in no cluster" : `cluster ${clusters[position]}`];
    const shared = circuits.length < 2 ? [] : [`kept in ${keeping.length} of ${circuits.length} circuits`];
    return {
      what: `${title(position)} (${grouped(inNetwork)} in the network)`,
      parts: [...(score === null ? [] : [`score ${scoreText(score)}`]), state, ...cluster, ...shared],
    };
  }

  const MOST_LISTED = 12;

  function tell() {
    const position = pinned >= 0 ? pinned : hovered >= 0 ? hovered : current;
    facts.replaceChildren();
    find("told").classList.toggle("empty", position < 0);
    const say = (tag, text, name, parent = facts) => {
      const element = document.createElement(tag);
      element.textContent = text;
      if (name) element.className = name;
      parent.append(element);
      return element;
    };
    if (position < 0) {
      say("p", "No unit chosen yet.", "quiet");
    } else {
      const {what, parts} = lines(position);
      say("p", what, "what");
      say("p", parts.join(" · "));
      if (circuits.length > 1) {
        const size = each => Math.abs(each.scores[position] ?? 0);
        const sorted = circuits.length <= MOST_LISTED ? circuits : [...circuits].sort((a, b) => size(b) - size(a));
        const list = say("ul", "");
        for (const each of sorted.slice(0, MOST_LISTED)) {
          const kept = each.scores[position] !== null && each.kept[position];
          say("li", `${apart(each.name)}: ${scoreText(each.scores[position])}${kept ? " ✓" : ""}`, kept ? "kept" : "", list);
        }
        if (circuits.length > MOST_LISTED) say("li", `and ${circuits.length - MOST_LISTED} smaller`, "", list);
      }
    }
    find("pin").setAttribute("aria-pressed", String(pinned >= 0));
    ring();
  }

  function ring() {
    const circle = picture.lastChild;
    const position = pinned >= 0 ? pinned : hovered >= 0 ? hovered : current;
    if (!circle || !layout) return;
    const visible = position >= 0 && shown[position];
    circle.setAttribute("visibility", visible ? "visible" : "hidden");
    if (!visible) return;
    const cell = layout.blocks[columnOf[position]].cell;
    circle.setAttribute("cx", where.x[position]);
    circle.setAttribute("cy", where.y[position]);
    circle.setAttribute("r", Math.max(0.5 * cell, 5));
    circle.setAttribute("class", `unit-ring${pinned >= 0 ? " pinned" : ""}`);
  }

  // --- Pointer, keys, buttons.

  function unitAt(event) {
    const box = picture.getBoundingClientRect(), scale = layout.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let nearest = -1, least = Infinity;
    for (const block of layout.blocks) {
      const reach = Math.max(0.75 * block.cell, 12);
      if (x < block.x - reach || x > block.x + block.across * block.cell + reach) continue;
      if (y < block.y - reach || y > block.y + block.down * block.cell + reach) continue;
      for (const position of block.column.order) {
        if (!shown[position]) continue;
        const distance = Math.hypot(where.x[position] - x, where.y[position] - y);
        if (distance < Math.min(reach, least)) [nearest, least] = [position, distance];
      }
    }
    return nearest;
  }

  function move(position) {
    if (position < 0) return;
    current = position;
    hovered = -1;
    if (pinned >= 0) pinned = position;
    tell();
    speak(position, ...(pinned >= 0 ? ["pinned"] : []));
    keepInSight(position);
  }

  function speak(position, ...more) {
    const {what, parts} = lines(position);
    find("spoken").textContent = `${what}: ${[...parts, ...more].join(", ")}`;
  }

  function forget() {
    current = pinned = hovered = -1;
    tell();
  }

  function keepInSight(position) {
    const box = picture.getBoundingClientRect(), scale = box.width / layout.width;
    const y = box.top + where.y[position] * scale, low = find("told").getBoundingClientRect().top;
    if (y < 30) scrollBy(0, y - 60);
    else if (y > low - 20) scrollBy(0, y - low + 50);
  }

  function along(step) {
    const start = current < 0 ? (step > 0 ? -1 : total) : turn[current];
    for (let index = start + step; index >= 0 && index < total; index += step)
      if (shown[sequence[index]]) return sequence[index];
    return -1;
  }

  // The nearest line of marks on that side that has one, and there the nearest mark.
  function aside(step) {
    if (current < 0) return along(1);
    const [main, cross] = layout.upright ? [where.y, where.x] : [where.x, where.y];
    const row = layout.upright ? layout.blocks.map(block => block.y) : layout.blocks.map(() => 0);
    let best = -1, least = [Infinity, Infinity];
    for (let position = 0; position < total; position++) {
      if (!shown[position] || row[columnOf[position]] !== row[columnOf[current]]) continue;
      const distance = [step * (cross[position] - cross[current]), Math.abs(main[position] - main[current])];
      if (distance[0] <= 0.5) continue;
      if (distance[0] < least[0] - 0.5 || (distance[0] < least[0] + 0.5 && distance[1] < least[1]))
        [best, least] = [position, distance];
    }
    return best >= 0 ? best : nextColumn(step);
  }

  // From the end of one line of columns to the next.
  function nextColumn(step) {
    for (let index = columnOf[current] + step; index >= 0 && index < columns.length; index += step) {
      const own = columns[index].order.find(position => shown[position]);
      if (own !== undefined) return own;
    }
    return -1;
  }

  function end(last) {
    if (current < 0) return along(1);
    const own = columns[columnOf[current]].order.filter(position => shown[position]);
    return own.length ? own[last ? own.length - 1 : 0] : -1;
  }

  function pin(position) {
    pinned = pinned === position ? -1 : position;
    if (position >= 0) current = position;
    tell();
    if (position >= 0) speak(position, pinned >= 0 ? "pinned" : "no longer pinned");
  }

  stage.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [before, after] = layout.upright ? ["ArrowUp", "ArrowDown"] : ["ArrowLeft", "ArrowRight"];
    const [left, right] = layout.upright ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];
    const keys = {
      [before]: () => move(along(-1)), [after]: () => move(along(1)),
      [left]: () => move(aside(-1)), [right]: () => move(aside(1)),
      Home: () => move(end(false)), End: () => move(end(true)),
      Enter: () => pin(current >= 0 ? current : along(1)), " ": () => pin(current >= 0 ? current : along(1)),
      Escape: () => pinned >= 0 ? pin(pinned) : forget(),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  stage.addEventListener("focus", () => {
    if (current < 0 && stage.matches(":focus-visible")) move(along(1));
  });
  picture.addEventListener("pointermove", event => {
    if (event.pointerType === "touch") return;
    const found = unitAt(event);
    if (found === hovered) return;
    hovered = found;
    if (pinned < 0) tell();
  });
  picture.addEventListener("pointerleave", () => {
    hovered = -1;
    tell();
  });
  picture.addEventListener("click", event => {
    const found = unitAt(event);
    hovered = -1;
    if (found >= 0) pin(found);
    else forget();
  });
  find("previous").addEventListener("click", () => move(along(-1)));
  find("next").addEventListener("click", () => move(along(1)));
  find("pin").addEventListener("click", () => pin(current >= 0 ? current : along(1)));
  find("close").addEventListener("click", forget);

  function update() {
    choose();
    if (pinned >= 0 && !shown[pinned]) pinned = -1;
    if (current >= 0 && !shown[current]) current = -1;
    hovered = -1;
    draw();
    tell();
  }
  controls.addEventListener("change", update);
  controls.addEventListener("submit", event => event.preventDefault());
  controls.addEventListener("click", event => {
    const wanted = event.target.dataset.clusters;
    if (wanted === undefined) return;
    controls.querySelectorAll("[name=cluster]").forEach(box => { box.checked = wanted === "all"; });
    update();
  });

  let width = 0;
  new ResizeObserver(() => {
    if (stage.clientWidth === width) return;
    width = stage.clientWidth;
    place();
    draw();
  }).observe(stage);

  place();
  update();
})();
