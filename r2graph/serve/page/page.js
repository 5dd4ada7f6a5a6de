// The page of `r2graph serve`: asks for a run, and draws what its events say.
// Whatever comes from a model or a user is put into the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const PAUSE_MS = 450; // between events in slow motion
const NODE = { width: 190, height: 104, gapX: 38, gapY: 20 };
const EXAMPLES = {
  lab: [
    "( 47 * 8 - 12 ) * ( 5 - 38 )",
    "jump opposite left twice and walk around right",
    "What currency is used in the country where Oslo is?",
  ],
};

const $ = (id) => document.getElementById(id);
let models = []; // graphs that are served, as /v1/models tells
let shown = null; // the run on the screen
let selected = null; // the id of a step
let aborter = null; // of the run under way
const history = [];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element[name] = value;
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function dollars(text) {
  const value = Number(text);
  if (value === 0) return "$0";
  const size = Math.abs(value);
  const places = Math.min(12, Math.max(2, 2 - Math.floor(Math.log10(size))));
  const shown = size >= 1 ? size.toFixed(2) : size.toFixed(places).replace(/(\.\d\d\d*?)0+$/, "$1");
  return (value < 0 ? "-$" : "$") + shown;
}

function cut(text, length) {
  const plain = String(text).replace(/\s+/g, " ").trim();
  return plain.length > length ? plain.slice(0, length - 1) + "…" : plain;
}

function lines(text, width, count) {
  const result = [];
  let left = String(text).replace(/\s+/g, " ").trim();
  while (left && result.length < count) {
    if (left.length <= width) return [...result, left];
    if (result.length === count - 1) return [...result, cut(left, width)];
    const space = left.lastIndexOf(" ", width);
    const at = space > width / 2 ? space : width;
    result.push(left.slice(0, at));
    left = left.slice(at).trim();
  }
  return result;
}

// The members of the run's pool, and their colours: blue for the cheapest to red for the strongest.

function membersOf(run) {
  return models.find((model) => model.id === run?.model)?.r2.members ?? [];
}

function paint(element, members, name) {
  const rank = members.findIndex((member) => member.name === name);
  const share = members.length > 1 ? rank / (members.length - 1) : 0;
  const hue = rank < 0 ? "var(--quiet)" : `hsl(${190 + 160 * share} 72% var(--lit))`;
  element.style.setProperty("--hue", hue);
}

// What is known of a run, event by event.

function begin(fields) {
  return { ...fields, status: "running", round: 0, plan: null, steps: {}, asked: null, answer: null, bill: null, error: null };
}

function apply(run, event) {
  switch (event.event) {
    case "plan":
      run.plan = event.plan;
      run.round = event.round;
      run.steps = {};
      for (const { id, text, depends_on: needs } of event.plan.subtasks)
        run.steps[id] = { id, text, needs, prompt: text, state: "waiting", member: null, asked: null, attempts: [], output: null };
      run.asked = null;
      break;
    case "allocation":
      for (const [id, chosen] of Object.entries(event.allocation))
        Object.assign(run.steps[id], { member: chosen.member, reason: chosen.reason });
      run.asked = null;
      break;
    case "asked": {
      const step = run.steps[event.step];
      (step ?? run).asked = event; // for a step, or to plan, to allocate, to judge the answer
      if (step) step.state = "running";
      if (event.role === "executor") step.member = event.member;
      break;
    }
    case "attempt": {
      const step = run.steps[event.step];
      step.attempts.push(event);
      step.output = event.output ?? step.output;
      Object.assign(step, { asked: null, member: event.member });
      break;
    }
    case "step": {
      const { id, prompt, member, output, stopped } = event;
      Object.assign(run.steps[id], { prompt, member, output, stopped, asked: null, state: verdict(event) });
      break;
    }
    case "answer":
      run.asked = null;
      break;
    case "result":
      run.bill = event;
      run.answer = event.answer;
      run.status = "done";
      break;
  }
}

function verdict(step) {
  if (step.output === null || step.ok === false) return "bad";
  return step.ok ? "good" : "unsure";
}

// The plan as layers: a step stands behind all that it needs. An edge across several layers has a
// narrow lane of its own in those between.

const LANE = 0.3; // its share of a step's place

function layout(run, isWide) {
  const steps = Object.values(run.steps);
  const depth = {};
  for (const step of steps) depth[step.id] = Math.max(0, ...step.needs.map((id) => depth[id] + 1));
  const layers = Array.from({ length: Math.max(0, ...Object.values(depth)) + 1 }, () => []);
  const behind = {}; // of a step or lane: what stands next to it in the layer before
  for (const { id } of steps) {
    layers[depth[id]].push(id);
    behind[id] = [];
  }
  const routes = [];
  for (const step of steps)
    for (const need of step.needs) {
      const lanes = [];
      for (let rank = depth[need] + 1; rank < depth[step.id]; rank++) {
        const lane = `${need} ${rank}`; // ids have no spaces; edges from one step share a lane
        if (!behind[lane]) {
          behind[lane] = [lanes.at(-1) ?? need];
          layers[rank].push(lane);
        }
        lanes.push(lane);
      }
      behind[step.id].push(lanes.at(-1) ?? need);
      routes.push({ from: need, lanes, to: step.id });
    }
  const room = (id) => (id in depth ? 1 : LANE);
  const middle = {};
  for (const layer of layers) {
    const wish = (id) => (behind[id].length ? behind[id].reduce((sum, each) => sum + middle[each], 0) / behind[id].length : 0);
    const wishes = new Map(layer.map((id) => [id, wish(id)]));
    layer.sort((a, b) => wishes.get(a) - wishes.get(b));
    let edge = -layer.reduce((sum, id) => sum + room(id), 0) / 2;
    for (const id of layer) {
      middle[id] = edge + room(id) / 2;
      edge += room(id);
    }
  }
  const { width, height, gapX, gapY } = NODE;
  const [along, across] = isWide ? [width + gapX, height + gapY] : [height + gapX / 1.4, width + gapY];
  const broadest = Math.max(...layers.map((layer) => layer.reduce((sum, id) => sum + room(id), 0)));
  const at = {}; // the middle of each
  layers.forEach((layer, rank) => {
    for (const id of layer) {
      const [main, cross] = [rank * along + (isWide ? width : height) / 2, (middle[id] + broadest / 2) * across - gapY / 2];
      at[id] = isWide ? { x: main, y: cross } : { x: cross, y: main };
    }
  });
  const size = [layers.length * along - (along - (isWide ? width : height)), broadest * across - gapY];
  if (!isWide) size.reverse();
  return { at, routes, width: size[0], height: size[1] };
}

function drawPlan(run) {
  const box = $("plan");
  box.replaceChildren();
  if (!run?.plan) {
    box.append(make("p", { className: "empty", textContent: run?.status === "running" ? "Planning…" : "No plan yet." }));
    return;
  }
  const isWide = box.clientWidth > 640;
  const { at, routes, width, height } = layout(run, isWide);
  const scale = Math.max(0.7, Math.min(1, box.clientWidth / (width + 8)));
  const svg = draw("svg", {
    viewBox: `-4 -4 ${width + 8} ${height + 8}`, width: (width + 8) * scale, height: (height + 8) * scale,
    role: "group", "aria-label": `plan of ${Object.keys(run.steps).length} steps`,
  });
  for (const { from, lanes, to } of routes)
    svg.append(edge([from, ...lanes, to].map((id) => at[id]), run.steps[from], isWide));
  for (const step of Object.values(run.steps)) {
    const { x, y } = at[step.id];
    svg.append(node(run, step, { x: x - NODE.width / 2, y: y - NODE.height / 2 }));
  }
  box.append(svg);
}

function edge(points, step, isWide) {
  const half = isWide ? NODE.width / 2 : NODE.height / 2;
  const before = ({ x, y }) => (isWide ? [x - half, y] : [x, y - half]);
  const after = ({ x, y }) => (isWide ? [x + half, y] : [x, y + half]);
  let path = `M${after(points[0])}`;
  points.slice(1).forEach((point, index) => {
    const [[x1, y1], [x2, y2]] = [after(points[index]), before(point)];
    path += isWide ? ` C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}` : ` C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`;
    if (index < points.length - 2) path += ` L${after(point)}`;
  });
  const isDone = !["waiting", "running"].includes(step.state);
  return draw("path", { class: isDone ? "edge done" : "edge", d: path });
}

function node(run, step, { x, y }) {
  const { width, height } = NODE;
  const group = draw("g", {
    class: `node ${step.state}${selected === step.id ? " chosen" : ""}`, transform: `translate(${x} ${y})`,
    tabindex: 0, role: "button", "data-step": step.id, "aria-label": `step ${step.id}, ${step.state}, ${step.member ?? ""}`,
  });
  paint(group, membersOf(run), step.member);
  group.append(draw("rect", { width, height, rx: 9 }));
  const write = (at, text, name, anchor = "start") => {
    const element = draw("text", { x: anchor === "end" ? width - 11 : 11, y: at, class: name, "text-anchor": anchor });
    element.textContent = text;
    group.append(element);
    return element;
  };
  write(20, step.id, "id");
  if (step.member) write(20, cut(step.member, 18), step.state === "waiting" ? "chip planned" : "chip", "end");
  lines(step.prompt, 23, 2).forEach((line, at) => write(38 + 15 * at, line, "prompt"));
  const tone = step.state === "good" ? "good-ink" : step.state === "bad" ? "bad-ink" : "";
  if (step.output !== null) write(75, cut(step.output, 21), `output ${tone}`);
  else if (step.stopped) write(75, `stopped: ${step.stopped}`, "output bad-ink");
  else if (step.asked?.role === "verifier") write(75, cut(`${step.asked.member} checks`, 21), "output quiet");
  else if (step.state === "running") write(75, "…", "output");
  climb(write(94, "", "climb"), step);
  group.append(draw("title"));
  group.lastChild.textContent = `${step.prompt}${step.output === null ? "" : `\n= ${step.output}`}`;
  const select = () => {
    selected = step.id;
    render(run);
  };
  group.addEventListener("click", select);
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      select();
      document.querySelector(`[data-step="${CSS.escape(step.id)}"]`)?.focus();
    }
  });
  return group;
}

function climb(line, step) {
  // The attempts, each on a stronger member; where they do not fit, names only for the last.
  const parts = step.attempts.map((attempt) => ({ name: cut(attempt.member, 16), ok: attempt.ok }));
  const isLong = parts.reduce((sum, part) => sum + part.name.length + 5, 0) > 27;
  parts.forEach(({ name, ok }, at) => {
    const isShort = isLong && at < parts.length - 1;
    if (at && !(isShort && at < parts.length - 1)) line.append(" › ");
    const mark = draw("tspan", { class: toneOf(ok) });
    mark.textContent = isShort ? markOf(ok) : ` ${markOf(ok)}`;
    line.append(...(isShort ? [mark] : [name, mark]));
  });
  if (step.state === "running" && step.attempts.at(-1)?.ok === false) line.append(" › …");
}

function markOf(ok) {
  return ok === false ? "✗" : ok ? "✓" : "○";
}

function toneOf(ok) {
  return ok === false ? "bad-ink" : ok ? "good-ink" : "quiet";
}

function drawLadder(run) {
  const members = membersOf(run);
  const asked = run?.status === "running" ? [run, ...Object.values(run.steps)].map((each) => each.asked?.member) : [];
  const marks = {};
  for (const { member, ok } of run?.tried ?? []) (marks[member] ??= []).push(ok);
  const rows = members.map(({ name, input_per_mtok: input, output_per_mtok: output, local }) => {
    const tried = make("span", { className: "marks" });
    for (const ok of (marks[name] ?? []).slice(-8))
      tried.append(make("span", { className: toneOf(ok), textContent: markOf(ok) }));
    const row = make(
      "li",
      { title: `${local ? "on this device; " : ""}$${input} in, $${output} out, a million tokens` },
      make("span", { className: "lamp" }),
      make("span", { className: "name", textContent: name }),
      tried,
      make("span", { className: "price", textContent: dollars(output) }),
    );
    row.dataset.member = name;
    row.classList.toggle("active", asked.includes(name));
    row.classList.toggle("used", Boolean(marks[name]));
    paint(row, members, name);
    return row;
  });
  $("ladder").replaceChildren(...rows.reverse());
}

function rowOf(cells, tag = "td", texts = [0]) {
  return make("tr", {}, ...cells.map((cell, at) =>
    cell instanceof Node ? make(tag, {}, cell) : make(tag, { className: texts.includes(at) ? "" : "number", textContent: cell })));
}

function drawBill(run) {
  const box = $("bill");
  box.replaceChildren();
  const bill = run?.bill;
  if (!bill) {
    const paid = (run?.tried ?? []).reduce((sum, attempt) => sum + Number(attempt.cost_usd), 0);
    const text = run?.status === "running" ? `${dollars(paid)} for attempts so far` : run?.tried.length ? `${dollars(paid)} for attempts` : "none";
    box.append(make("p", { className: "empty", textContent: text }));
    return;
  }
  const head = make("thead", {}, rowOf(["model", "calls", "tokens", "cost"], "th"));
  const body = make("tbody");
  for (const [name, use] of Object.entries(bill.usage))
    body.append(rowOf([name, use.calls, (use.input_tokens + use.output_tokens).toLocaleString("en"), dollars(use.cost_usd)]));
  const calls = Object.values(bill.usage).reduce((sum, use) => sum + use.calls, 0);
  const foot = make("tfoot", {}, rowOf(["all of it", calls, "", dollars(bill.cost_usd)]));
  box.append(make("table", {}, head, body, foot));
  const strongest = membersOf(run).at(-1)?.name ?? "the strongest";
  const [cost, estimate] = [Number(bill.cost_usd), Number(bill.counterfactual_usd)];
  const most = Math.max(cost, estimate) || 1;
  const bars = make("div", { className: "bars" });
  for (const [label, amount, value, kind] of [
    ["this run", bill.cost_usd, cost, "ours"],
    [`its steps all on ${strongest} (estimate)`, bill.counterfactual_usd, estimate, "theirs"],
  ]) {
    const bar = draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      draw("rect", { class: "track", width: 100, height: 8 }), draw("rect", { class: kind, width: (100 * value) / most, height: 8 }));
    bars.append(make("div", {}, make("span", { textContent: label }), make("span", { textContent: dollars(amount) })), bar);
  }
  box.append(bars);
  if (estimate > 0) {
    const saves = cost <= estimate;
    const text = saves ? `saved ${Math.round(100 * (1 - cost / estimate))} %, router and checks included`
      : `${(cost / estimate).toFixed(1)} times the estimate: planning and failed attempts cost more than they saved`;
    box.append(make("p", { className: `saved ${saves ? "good-ink" : "bad-ink"}`, textContent: text }));
  }
}

const DOES = { decomposer: "plans", allocator: "allocates", verifier: "checks the answer" };

function drawAnswer(run) {
  const hasAnswer = Boolean(run?.answer);
  $("answer").className = run?.error ? "bad-ink" : hasAnswer ? "" : "empty";
  $("answer").textContent = run?.error ?? (hasAnswer ? run.answer : run?.status === "running" ? "…" : "none");
  $("verdict").textContent = run?.bill?.stop_reason ?? "";
  $("verdict").className = run?.bill?.stop_reason === "verified" ? "good-ink" : "";
  $("round").textContent = run?.round > 1 ? `round ${run.round}: the first answer was rejected` : "";
  const done = Object.values(run?.steps ?? {}).filter((step) => !["waiting", "running"].includes(step.state)).length;
  const states = {
    running: run?.asked ? `${run.asked.member} ${DOES[run.asked.role]}` : run?.plan ? `${done} of ${Object.keys(run.steps).length} steps done` : "planning",
    done: `done in ${run?.bill?.seconds.toFixed(2)} s on the server`, failed: "failed", stopped: "stopped",
  };
  $("status").textContent = run ? states[run.status] : "";
}

function drawStep(run) {
  const step = run?.steps[selected];
  $("step-card").hidden = !step;
  if (!step) return;
  $("step-title").textContent = `Step ${step.id}`;
  $("step-prompt").textContent = step.prompt;
  const rows = step.attempts.map((each) =>
    rowOf([each.member, each.output ?? "no output", each.reason, each.input_tokens + each.output_tokens, dollars(each.cost_usd), `${each.seconds.toFixed(2)} s`], "td", [0, 1, 2]));
  $("step-attempts").replaceChildren(
    make("thead", {}, rowOf(["model", "output", "check", "tokens", "cost", "time"], "th", [0, 1, 2])), make("tbody", {}, ...rows));
}

function drawHistory() {
  const rows = history.map((run) => {
    const open = make("button", { type: "button", textContent: run.query, title: run.query });
    open.addEventListener("click", () => {
      selected = null;
      shown = run;
      render(run);
    });
    const { bill } = run;
    return rowOf([open, cut(run.error ?? run.answer ?? run.status, 40), run.quality.toFixed(2), bill ? dollars(bill.cost_usd) : "", bill ? dollars(bill.counterfactual_usd) : ""], "td", [0, 1]);
  });
  const head = make("thead", {}, rowOf(["query", "answer", "quality", "cost", "strongest"], "th", [0, 1]));
  $("history").replaceChildren(...(rows.length ? [head, make("tbody", {}, ...rows)] : [make("caption", { className: "empty", textContent: "no runs yet" })]));
}

function render(run) {
  if (run !== shown) return;
  drawPlan(run);
  drawLadder(run ?? { model: $("model").value });
  drawBill(run);
  drawAnswer(run);
  drawStep(run);
  document.body.dataset.status = run?.status ?? "idle";
}

// Talking to the server.

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  if (response.status === 401) $("key-box").hidden = false;
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answered ${response.status}`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let left = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

async function follow(run, signal) {
  const asked = { model: run.model, query: run.query, quality: run.quality, ...(run.budget ? { budget_usd: run.budget } : {}) };
  const response = await fetch("runs", { method: "POST", headers: headers(), body: JSON.stringify(asked), signal });
  if (!response.ok) throw new Error(await failure(response));
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    if ($("slow").checked && !["asked", "plan", "answer"].includes(event.event)) await pause(signal);
    if (event.event === "attempt") run.tried.push(event);
    apply(run, event);
    render(run);
  }
  if (run.status === "running") throw new Error("the server ended the run");
}

function pause(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, PAUSE_MS);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}

async function start() {
  const run = begin({
    model: $("model").value, query: $("query").value.trim(), quality: Number($("quality").value), budget: $("budget").value.trim(), tried: [],
  });
  if (!run.query || aborter) return;
  aborter = new AbortController();
  selected = null;
  shown = run;
  history.unshift(run);
  $("run").hidden = true;
  $("stop").hidden = false;
  render(run);
  drawHistory();
  try {
    await follow(run, aborter.signal);
  } catch (error) {
    run.status = error.name === "AbortError" ? "stopped" : "failed";
    if (run.status === "failed") run.error = error.message;
    for (const step of Object.values(run.steps))
      if (step.state === "running") step.state = run.error && step.attempts.at(-1)?.ok === false ? "bad" : "waiting";
  } finally {
    aborter = null;
    $("run").hidden = false;
    $("stop").hidden = true;
    render(run);
    drawHistory();
  }
}

function choose() {
  const about = models.find((model) => model.id === $("model").value)?.r2;
  if (!about) return;
  $("quality").value = about.quality;
  $("quality-shown").textContent = Number($("quality").value).toFixed(2);
  $("budget").placeholder = about.budget_usd === null ? "no cap" : `at most ${about.budget_usd}`;
  $("slow").checked = about.language === "lab"; // its models are done before anyone has looked
  $("examples").replaceChildren(...(EXAMPLES[about.language] ?? []).map((text) => {
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => {
      $("query").value = text;
      $("query").focus();
    });
    return button;
  }));
  if (!shown) render(null);
}

async function load() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await failure(response));
    models = (await response.json()).data.filter((model) => model.id === model.r2.graph);
  } catch (error) {
    $("answer").textContent = error.message;
    return;
  }
  $("model").replaceChildren(...models.map((model) => make("option", { value: model.id, textContent: model.id })));
  $("model-box").hidden = models.length < 2;
  $("answer").textContent = "none yet";
  choose();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => aborter?.abort());
$("quality").addEventListener("input", () => ($("quality-shown").textContent = Number($("quality").value).toFixed(2)));
$("model").addEventListener("change", choose);
$("key-box").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
window.addEventListener("resize", () => shown && drawPlan(shown));
drawHistory();
load();
