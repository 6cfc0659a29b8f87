// tbmon's dashboard: one state, pages as functions from answers to elements, and one stream that says what has changed.
// Parts: 1 Formats, 2 Elements, 3 Answers, 4 Live, 5 Charts, 6 Components, 7 Pages, 8 Actions, 9 Start. The page of
// the log is log.js, which is loaded when it is first looked at.
// Texts from a log are only ever text nodes; nothing here makes markup out of words.

const [POLL_MS, RENEW_MS, QUIET_MS, TIMEOUT_MS, REST_MS] = [5000, 60000, 40000, 20000, 3000];
const STARTING = { state: 'blind', reason: 'tbmon has just started and has not looked yet',
  advice: 'Wait a few seconds.', since: null, as_of: null };
const MARKS = {
  working: 'check', completed: 'check', pay: 'check', ok: 'check', degraded: 'half', warn: 'half', 
    penalty: 'half',
  down: 'cross', failed: 'cross', error: 'cross', fail: 'cross', idle: 'diamond', received: 'diamond', invoice: 'coin',
  blind: 'question', ended: 'question', lost: 'question', executing: 'run', start: 'start', gap: 'gap',
};
const WORDS = { // for names that do not read well as they are
  pay: 'paid', penalty: 'penalised', start: 'node started', gap: 'log lines may be missing', invoice: 'invoice',
  ended: 'ended, result unknown', gas_limit: 'gas limit', memory_limit: 'memory limit', exit_code: 'exit code',
};

const find = (selector, root = document) => root.querySelector(selector);
const view = find('#view');
const state = {
  boxes: new Map(), // path: what tbmon answered last, and how old that is
  open: new Set(), // what the reader has unfolded
  live: { mode: 'connecting', why: '', last: null, heardAt: 0, aborter: null, timer: 0 },
  trouble: '', loginError: '', said: '', skewMs: 0, seen: null,
  parts: 3, // of the page Now are drawn; the others follow one by one, so that the first load never holds the reader up
};

// --- 1. Formats ---

const isUnknown = (value) => value === null || value === undefined || value === '';
const now = () => Date.now() + state.skewMs;
const utc = (iso) => iso.replace('T', ' ').replace(/(\.000)?Z$/, ' UTC');
const minute = (iso) => `${iso.slice(0, 16).replace('T', ' ')} UTC`;
const inNumbers = (options) => new Intl.NumberFormat('en', options).format;
const count = inNumbers({ maximumFractionDigits: 0 });
const decimal = inNumbers({ maximumFractionDigits: 1, roundingMode: 'trunc' }); // 99.96 % success is not all
const exact = inNumbers({ maximumFractionDigits: 2 });
const compact = inNumbers({ notation: 'compact', maximumFractionDigits: 1 });
const percent = (value) => (isUnknown(value) ? '–' : `${exact(value)} %`);
const words = (name) => (isUnknown(name) ? '–' : WORDS[name] ?? String(name).replaceAll('_', ' '));
const plural = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;
const megabytes = (bytes) => `${count(bytes / 1048576)} MiB`;
const pages = (value) => `${decimal(value / 16)} MiB`;
const shortId = (id) => String(id).slice(0, 8);
const upper = (text) => text.replace(/^(?!tbmon|\w+:\/\/)./, (letter) => letter.toUpperCase());
const sentence = (text) => upper(String(text).replace(/`([^`]*)`/g, '“$1”')).replace(/([^.!?])$/, '$1.');
const after = (iso, ms) => new Date(Date.parse(iso) + ms).toISOString();
const or = (value, show) => (isUnknown(value) ? '–' : show(value));

function span(seconds) {
  const units = [[172800, 86400, 'days'], [3600, 3600, 'h'], [60, 60, 'min'], [0, 1, 's']];
  const [, size, unit] = units.find(([from]) => seconds >= from);
  return `${Math.floor(seconds / size)} ${unit}`;
}

const ago = (iso) => `${span(Math.max(0, (now() - Date.parse(iso)) / 1000))} ago`;

function duration(ms) {
  if (ms < 1000) return `${count(ms)} ms`;
  return ms < 60000 ? `${decimal(ms / 1000)} s` : `${Math.floor(ms / 60000)} min ${Math.floor((ms % 60000) / 1000)} s`;
}

// --- 2. Elements ---

const SVG = 'http://www.w3.org/2000/svg';

/** An element; attributes that are null or false are left out, `style` is an object, children may be nested lists. */
function h(tag, attributes = {}, ...children) {
  return put(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return put(document.createElementNS(SVG, tag), attributes, children);
}

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style') Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => !isUnknown(child) && child !== false));
  return element;
}

/** Make the children of `parent` like `fresh`, keeping what is there, so that focus, selection and scroll stay. */
function morph(parent, fresh) {
  const wanted = new Set(fresh.map((node) => node.dataset?.key));
  const keyed = new Map();
  for (const child of [...parent.children].filter((one) => one.dataset.key)) {
    // What goes, goes first: moving what stays to before it would take the focus away.
    if (wanted.has(child.dataset.key) && !keyed.has(child.dataset.key)) keyed.set(child.dataset.key, child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const node of fresh) {
    const known = node.dataset?.key ? keyed.get(node.dataset.key) : at && isLike(at, node) ? at : null;
    keyed.delete(node.dataset?.key); // a second one of the same key is an element of its own
    if (!known) parent.insertBefore(node, at);
    else if (known === at) at = at.nextSibling;
    else parent.insertBefore(known, at);
    if (known) renew(known, node);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const KEPT = ['open', 'style', 'data-shown']; // what the reader or the page has set, not the one who draws
const isLike = (a, b) => a.nodeName === b.nodeName && !a.dataset?.key && a.dataset?.keep === b.dataset?.keep;

function renew(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.dataset.keep || fresh.dataset.keep) return;
  if (old.style && old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !KEPT.includes(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== 'style' && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morph(old, [...fresh.childNodes]);
}

let drawing = 0;

/** Draw once before the next frame, however many things have changed. */
function schedule() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    draw();
  });
}

// --- 3. Answers ---

/** Ask tbmon; throws an Error whose `status` is the HTTP status, or 0 if nothing of tbmon's came back. */
async function ask(path, options = {}) {
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS),
    ...options }).catch(() => null);
  const body = await response?.json().catch(() => null);
  const fail = (text, status) => { throw Object.assign(new Error(text), { status }); };
  if (!body) fail('tbmon does not answer', 0);
  if (!response.ok) fail(String(body.error ?? `answer ${response.status}`), response.status);
  return body;
}

const send = (path, body = {}, method = 'POST', password = '') => ask(path, {
  method, headers: { 'Content-Type': 'application/json', ...(password && { 'X-Task-Data-Password': password }) },
  body: JSON.stringify(body),
});

const PRIVATE = /^api\/(logs(?!\/status)|audit|doctor|tasks\/[^/]+\/(data|artifacts))/;
const AUTH = 'api/auth/status';
const auth = () => state.boxes.get(AUTH)?.data;

/** What a path asks for that its reader has not given; null if nothing, or as long as that is not known. */
function lockOf(path) {
  const open = auth()?.open;
  if (!open || path === AUTH) return null;
  return open.local ? (PRIVATE.test(path) && !open.private ? 'private' : null) : 'local';
}

/** The newest answer of a path, asked for again if something has changed since. */
function need(path) {
  const box = state.boxes.get(path) ?? { data: null, at: 0, error: null, locked: false, stale: true, loading: false };
  box.usedAt = Date.now();
  state.boxes.set(path, box);
  const lock = lockOf(path);
  if (lock) Object.assign(box, { locked: true, data: null, error: null, stale: true });
  else if (box.stale && !box.loading && (auth() || path === AUTH)) load(path, box);
  return box;
}

async function load(path, box) {
  const rest = box.askedAt + REST_MS - Date.now(); // a busy node is not asked for at every event
  if (rest > 0) {
    box.timer ||= setTimeout(() => { box.timer = 0; schedule(); }, rest);
    return;
  }
  Object.assign(box, { loading: true, stale: false, askedAt: Date.now() });
  box.fresh?.clear();
  try {
    let data = await ask(path);
    while (data.pagination?.next && rowsOf(data).length < box.wanted) data = await olderOf(path, data, box.wanted);
    if (box.fresh) for (const task of rowsOf(data)) box.fresh.delete(task.execution_id);
    Object.assign(box, { data, error: null, locked: false, at: Date.now() });
    state.trouble = '';
    if (data.timestamp) state.skewMs = Date.parse(data.timestamp) - Date.now();
  } catch (error) {
    box.error = error;
    box.locked = error.status === 401;
    if (box.locked) box.data = null;
    if (box.locked) checkAccess();
    if ([0, 429, 500, 503].includes(error.status)) state.trouble = error.message;
  }
  box.loading = false;
  schedule();
}

const rowsOf = (data) => Object.values(data).find(Array.isArray);

/** The same list with older rows, `wanted` in all if there are so many. */
async function olderOf(path, data, wanted) {
  const limit = Math.min(1000, wanted - rowsOf(data).length);
  const asked = new URLSearchParams({ limit, cursor: data.pagination.next });
  const older = await ask(`${path}&${asked}`.replace('?&', '?'));
  const name = Object.keys(older).find((one) => Array.isArray(older[one]));
  return { ...older, [name]: [...data[name], ...older[name]] };
}

/** What has changed: the answers of all paths that begin so. */
function outdate(...prefixes) {
  for (const [path, box] of state.boxes) {
    if (prefixes.some((prefix) => path.startsWith(prefix))) box.stale = true;
  }
  schedule();
}

function forgetUnused() {
  for (const [path, box] of state.boxes) {
    if (path !== 'api/now' && !box.loading && Date.now() - box.usedAt > 120000) state.boxes.delete(path);
  }
}

/** The session may have ended elsewhere: look, and if it has, let go of what it opened. */
async function checkAccess() {
  const before = JSON.stringify(auth());
  const known = await ask(AUTH).catch(() => null);
  if (known && JSON.stringify(known) !== before) changeAccess();
}

/** After a login, logout or an expired session: ask for everything again, and let go of what was private. */
async function changeAccess() {
  const box = state.boxes.get(AUTH);
  Object.assign(box, { data: null, stale: true, askedAt: 0 });
  await load(AUTH, box);
  for (const [path, one] of state.boxes) {
    if (path !== AUTH) Object.assign(one, { stale: true, askedAt: 0, locked: false, data: PRIVATE.test(path) ? null
      : one.data });
  }
  log?.forget();
  relisten();
  schedule();
}

// --- 4. Live ---

/** Read Server-Sent Events off an answer; unlike EventSource this knows why a stream is refused. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    state.live.heardAt = Date.now();
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      yield Object.fromEntries(part.split('\n').map((line) => line.split(/: ?(.*)/s, 2)));
    }
  }
}

async function listen() {
  const { live } = state;
  clearTimeout(live.timer);
  if (document.hidden || live.aborter || !auth()) return;
  if (!auth().open.stream) return setMode('polling', auth().open.local ? 'the stream asks for its token'
    : 'not logged in');
  const aborter = live.aborter = new AbortController();
  let waitMs = 2000;
  try {
    const headers = live.last ? { 'Last-Event-ID': live.last } : {};
    const response = await fetch('api/events', { headers, signal: aborter.signal, cache: 'no-store' });
    if (!response.ok) {
      waitMs = 1000 * (Number(response.headers.get('Retry-After')) || 30);
      throw new Error((await response.json()).error);
    }
    setMode('live', '');
    for await (const event of eventsOf(response.body)) hear(event);
    throw new Error('the stream ended');
  } catch (error) {
    if (live.aborter !== aborter) return; // closed by us
    live.aborter = null;
    setMode('polling', error instanceof TypeError ? 'the stream broke' : error.message);
    live.timer = setTimeout(listen, waitMs);
    checkAccess();
  }
}

function setMode(mode, why) {
  Object.assign(state.live, { mode, why, heardAt: Date.now() });
  schedule();
}

function hush() {
  const { aborter, timer } = state.live;
  state.live.aborter = null;
  clearTimeout(timer);
  aborter?.abort();
}

function relisten() {
  hush();
  listen();
}

/** One event: what it says is merged or asked for again by whoever shows it. */
function hear({ id, event, data }) {
  if (id) state.live.last = id;
  if (!event) return;
  const said = JSON.parse(data);
  if (event === 'log') log?.hearEntry(said);
  else if (event === 'node_status') hearStatus(said);
  else if (event === 'reset') {
    log?.forget();
    outdate('');
  } else if (event === 'task') hearTask(said);
  else outdate({ invoice: 'api/invoices', network_stats: 'api/federation', gap: 'api/logs/status' }[event] ?? 'none',
    'api/now');
}

function hearStatus(status) {
  const box = need('api/now');
  state.skewMs = Date.parse(status.timestamp) - Date.now();
  if (box.data) Object.assign(box, { data: { ...box.data, ...status }, at: Date.now(), error: null });
  state.trouble = '';
  schedule();
}

function hearTask(task) {
  outdate('api/now', 'api/tasks/stats', `api/tasks/${task.execution_id}`);
  for (const [path, box] of state.boxes) {
    if (!path.startsWith('api/tasks?') || !box.data) continue;
    const at = box.data.tasks.findIndex((one) => one.execution_id === task.execution_id);
    if (at >= 0) box.data.tasks[at] = task;
    else (box.fresh ??= new Set()).add(task.execution_id);
  }
}

/** Once a second: ages, and what time alone changes. */
function tick() {
  for (const element of document.querySelectorAll('time[datetime]')) {
    const text = ago(element.dateTime);
    if (!element.dataset.fixed && element.textContent !== text) element.textContent = text;
  }
  if (state.live.mode === 'live' && Date.now() - state.live.heardAt > QUIET_MS) {
    hush();
    setMode('polling', `nothing came for ${QUIET_MS / 1000} s`);
    listen();
  }
  const { session, expiresAt } = auth() ?? {};
  if (session && Date.parse(expiresAt) <= now()) changeAccess();
}

function poll() {
  if (document.hidden) return;
  if (!auth()) { // whoever does not know what it may ask for asks for nothing else
    if (!state.boxes.get(AUTH).loading) changeAccess();
    return;
  }
  for (const [path, box] of state.boxes) {
    if (path === AUTH) continue;
    const isLively = path.startsWith('api/federation/'); // its stream tells of figures, not of the connection
    const isOld = Date.now() - (box.askedAt ?? box.at) > (isLively ? REST_MS : RENEW_MS);
    if (isOld || (!box.locked && (state.live.mode !== 'live' || box.error))) box.stale = true;
  }
  if (state.live.mode !== 'live') log?.catchUp();
  forgetUnused();
  schedule();
}

// --- 5. Charts ---

const plots = new Map(); // chart: what the readout says at each place

const drawn = new Map(); // chart: what it was drawn from, so that it is drawn again only for something else

/** A chart of what `source` holds: title, summary, drawing, legend, and the same as a table. */
function chart(options) {
  const { id, source, summary } = options;
  const made = [source, summary, state.open.has(`table-${id}`)];
  const isSame = drawn.get(id)?.every((part, place) => part === made[place]);
  if (isSame && find(`figure[data-key="${id}"]`)) return h('figure', { 'data-key': id, 'data-keep': 'as it is' });
  drawn.set(id, made);
  return drawChart(options);
}

function drawChart({ id, title, summary, cells, heads, row, marks, axis, top = '', legend = [], low = false,
  first = (cell) => minute(cell.at) }) {
  const rows = cells.map((cell) => [first(cell), ...row(cell)]);
  plots.set(id, rows.map(([name, ...values]) =>
    `${name}: ${values.map((value, place) => `${heads[place]} ${value}`).join(', ')}`));
  const drawing = svg('svg', {
    viewBox: `0 0 ${cells.length} 100`, preserveAspectRatio: 'none', role: 'img', tabindex: 0, class: low ? 'low'
      : null,
    'aria-labelledby': `${id}-title ${id}-desc`, 'data-chart': id,
  }, svg('title', { id: `${id}-title` }, title),
    svg('desc', { id: `${id}-desc` }, `${summary}. Arrow keys read single values.`),
  marks(cells), svg('line', { class: 'cursor', 'data-keep': 'cursor', visibility: 'hidden', y1: 0, y2: 100 }));
  return h('figure', { 'data-key': id },
    h('figcaption', {}, h('h2', {}, title), h('p', {}, summary)),
    h('div', { class: 'plot' }, top && h('span', { class: 'top' }, top), drawing,
      h('div', { class: 'axis', 'aria-hidden': 'true' }, axis.map((text) => h('span', {}, text)))),
    h('div', { class: 'figure-foot' }, legend.length > 0 && legendOf(legend),
      h('output', { class: 'readout', 'data-keep': 'readout', 'aria-live': 'polite' }),
        asTable(id, title, ['From', ...heads], rows)));
}

const legendOf = (items) => h('ul', { class: 'legend' }, items.map(([fill, text]) => h('li', {},
  svg('svg', { viewBox: '0 0 10 10', 'aria-hidden': 'true' }, svg('rect', { width: 10, height: 10, class: fill })),
    text)));

/** The figures of a chart as a table, made when it is unfolded. */
function asTable(id, title, heads, rows) {
  const key = `table-${id}`;
  const isOpen = state.open.has(key);
  return h('details', { 'data-fold': key, open: isOpen }, h('summary', {}, 'As a table'), isOpen && h('div', {
    class: 'scroll', tabindex: 0, role: 'region', 'aria-label': `${title}, as a table`,
  }, h('table', {}, h('thead', {}, h('tr', {}, heads.map((head) => h('th', { scope: 'col' }, head)))),
    h('tbody', {}, rows.map(([first, ...others]) => h('tr', {}, h('th', { scope: 'row' }, first),
      others.map((text) => h('td', {}, text))))))));
}

/** Show the value at a place of a chart: under the pointer, or one further by an arrow key. */
function readChart(drawing, place) {
  const texts = plots.get(drawing.dataset.chart) ?? [];
  const at = Math.min(texts.length - 1, Math.max(0, place));
  const cursor = find('.cursor', drawing);
  for (const name of ['x1', 'x2']) cursor.setAttribute(name, at + 0.5);
  cursor.dataset.at = at;
  cursor.setAttribute('visibility', 'visible');
  find('output', drawing.closest('figure')).textContent = texts[at] ?? '';
}

/** Bars of parts on each other: `parts` are [class, cell -> number], from the foot up. */
function stacked(cells, parts) {
  const most = Math.max(1, ...cells.map((cell) => parts.reduce((sum, [, of]) => sum + of(cell), 0)));
  return cells.flatMap((cell, at) => {
    let foot = 100;
    return parts.filter(([, of]) => of(cell) > 0).map(([fill, of]) => {
      const height = Math.max(2.5, (100 * of(cell)) / most);
      foot -= height;
      return svg('rect', { class: fill, x: at + 0.12, y: Math.max(0, foot), width: 0.76, height });
    });
  });
}

/** A line through the known values; where one is unknown it is broken. */
function lineOf(cells, of, most, name = '', isFilled = false) {
  const runs = [];
  cells.forEach((cell, at) => {
    const value = of(cell);
    if (isUnknown(value)) runs.push([]);
    else (runs.at(-1) ?? runs[runs.push([]) - 1]).push([at + 0.5, 100 - (96 * value) / most]);
  });
  return runs.filter((run) => run.length).flatMap((run) => {
    const [from, to] = [run[0], run.at(-1)];
    const dash = `${from[0] - 0.4} ${from[1]}H${from[0] + 0.4}`;
    const path = `M${run.length > 1 ? run.map((point) => point.join(' ')).join('L') : dash}`;
    return [isFilled && svg('path', { class: 'area', d: `${path}L${to[0]} 100L${from[0]} 100Z` }),
      svg('path', { class: `line ${name}`, d: path })];
  }).filter(Boolean);
}

/** From the time that half of the tasks stay below up to that of 95 % of them, a bar; its foot is the half. */
const ranges = (cells, most) => cells.flatMap((cell, at) => (isUnknown(cell.p50_ms) ? [] : [
  svg('rect', { class: 'fill-wash', x: at + 0.12, width: 0.76, y: 100 - (100 * cell.p95_ms) / most,
    height: Math.max(1.5, (100 * (cell.p95_ms - cell.p50_ms)) / most) }),
  svg('rect', { class: 'fill-accent', x: at + 0.12, width: 0.76, y: 98 - (100 * cell.p50_ms) / most, height: 3 }),
]));

const gridLine = (cells) => svg('line', { class: 'grid-line', x1: 0, x2: cells.length, y1: 50, y2: 50 });
const dayAxis = ['24 h ago', '12 h ago', 'now'];

/** Shares of ranges as bars beside their names. */
function distribution(title, counts, name = words) {
  const all = Object.entries(counts ?? {});
  const total = all.reduce((sum, [, number]) => sum + number, 0);
  return h('section', { class: 'block', 'data-key': title }, h('h2', {}, title), total === 0
    ? small('Nothing is published yet.')
    : h('dl', { class: 'dist' }, all.map(([range, number]) => [h('dt', {}, name(range)),
      h('dd', {}, svg('svg', { class: 'bar', 'aria-hidden': 'true' }, svg('rect', { width: `${(100 * number) / total}%`,
        height: '100%' }))),
      h('dd', { class: 'end' }, `${count(number)} (${count((100 * number) / total)} %)`)])));
}

// --- 6. Components ---

const time = (iso) => (isUnknown(iso) ? '–' : h('time', { datetime: iso, title: utc(iso) }, ago(iso)));
const both = (iso) => (isUnknown(iso) ? '–' : [utc(iso), ' (', time(iso), ')']);
const icon = (name) => svg('svg', { class: 'icon', viewBox: '0 0 16 16', 'aria-hidden': 'true' },
  svg('use', { href: `#${name}` }));
const link = (href, ...children) => h('a', { href }, children);
const taskLink = (id) => (isUnknown(id) ? '–' : h('a', { class: 'mono', href: `#/tasks/${id}`, title: id },
  shortId(id)));

/** A state as shape and word; the colour goes with the shape. */
function mark(name, text = words(name)) {
  const shape = MARKS[name] ?? 'dot';
  return h('span', { class: `mark ${shape}` }, svg('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' },
    svg('use', { href: `#${shape}` })), text);
}

const muted = (...children) => h('p', { class: 'muted' }, children);
const small = (...children) => h('p', { class: 'muted small' }, children);
const soft = (...children) => h('span', { class: 'muted' }, children);
const pair = (...children) => h('div', { class: 'pair' }, children);
const list = (items, name = 'plain') => h('ul', { class: name }, items.map((item) => h('li', {}, item)));
const alertOf = (text) => h('p', { class: 'bad', role: 'alert' }, text);
const pre = (label, text) => h('pre', { tabindex: 0, role: 'region', 'aria-label': label }, text);
const feed = (rows) => h('ul', { class: 'feed' }, rows.map(([key, name, said, side]) =>
  h('li', { 'data-key': key }, mark(name, ''), h('span', {}, said), soft(side))));

const block = (title, ...children) => h('section', { class: 'block', 'data-key': title }, h('h2', {}, title), children);
const sheet = (...children) => h('div', { class: 'sheet stack' }, children);
const facts = (pairs) => h('dl', { class: 'facts' }, pairs.map(([name, ...value]) => [h('dt', {}, name),
  h('dd', {}, value)]));
const empty = (title, ...children) => h('div', { class: 'empty' }, h('strong', {}, title), children);
const button = (action, text, more = {}) => h('button', { type: 'button', 'data-do': action, ...more }, text);

const metrics = (items) => h('dl', { class: 'metrics' }, items.map(([name, value, unit, note]) => h('div', {},
  h('dt', {}, name), h('dd', {}, value, unit && h('small', {}, unit)), h('dd', {}, note ?? '\u00a0'))));

/** What a box has, shown by `show`; or why it has nothing, and how old it is if it could not be renewed. */
function boxed(box, show) {
  if (box.locked) return auth()?.open.local === false ? lockedOut() : unlock();
  if (!box.data && !box.error) return h('p', { class: 'loading', role: 'status' }, 'Asking tbmon …');
  if (!box.data) return h('p', { class: 'note warn' }, sentence(box.error.message),
    ' It is asked for again by itself.');
  return [box.error && notRenewed(box), show(box.data)];
}

const lockedOut = () => h('div', { class: 'empty' }, h('strong', {}, 'tbmon asks for its API key'),
  button('login', 'Log in', { class: 'main' }));

const notRenewed = (box) => h('p', { class: 'small warn' }, 'Not renewed since ',
  time(new Date(box.at + state.skewMs).toISOString()), `: ${box.error.message}`);

/** Ask for the task-data password where what needs it will stand. */
function unlock() {
  return h('form', { class: 'sheet unlock', 'data-submit': 'login', 'data-key': 'unlock' },
    h('h2', {}, 'This is private'),
    muted('Log entries and task data ask for a password. What it opens closes after 24 hours.'),
    username(), h('label', { for: 'password' }, 'Task-data password'),
    h('div', { class: 'actions' }, h('input', { id: 'password', name: 'secret', type: 'password',
      autocomplete: 'current-password', required: true, 'aria-describedby': 'password-hint' }),
      h('button', { class: 'main' }, 'Unlock')),
    alertOf(state.loginError),
    h('p', { class: 'muted small', id: 'password-hint' }, passwordPlace()));
}

const username = () => h('input', { name: 'username', autocomplete: 'username', value: 'tbmon',
  hidden: true }); // for password managers

function passwordPlace() {
  const { data } = need('api/setup');
  if (data?.passwordFrom === 'setting') {
    return 'It was set when tbmon was started, by TASK_DATA_PASSWORD or in the file TASK_DATA_PASSWORD_FILE.';
  }
  return ['tbmon made it at its first start. It stands in the file ', h('code', {}, 'task-data.password'),
    ' beside the database, and in the start-up log behind the key sign.'];
}

const CHOICES = {
  status: ['Status', ['', 'any'], 'received', 'executing', 'completed', 'failed', 'ended', 'lost'],
  type: ['Language', ['', 'any'], 'rust', 'javascript', 'python', 'c', 'cpp', 'api', 'other'],
  matched: ['Invoice', ['', 'any'], ['true', 'there is one'], ['false', 'there is none']],
  span: ['Time', ['24h', '24 hours'], ['', '7 days'], ['30d', '30 days'], ['all', 'all']],
  operation: ['Outcome', ['', 'any'], ['pay', 'paid'], ['penalty', 'penalised']],
  task: ['Task', ['', 'any'], ['true', 'known'], ['false', 'unknown']],
};

/** A filter; what is chosen stands in the address. */
function choice(name, query) {
  const [label, ...options] = CHOICES[name];
  return h('label', {}, label, h('select', { name, 'data-value': query.get(name) ?? '' }, options.map((option) => {
    const [value, text] = [option].flat();
    return h('option', { value }, text ?? words(value));
  })));
}

const filters = (names, query, ...more) => h('form', { class: 'actions filters', 'data-change': 'filter',
  'data-submit': 'filter', 'data-key': 'filters' },
  names.map((name) => choice(name, query)), more, query.size > 0 && button('unfilter', 'Clear filters',
    { class: 'bare' }));

/** A table whose rows become cards on a phone; columns are [head, row -> cell, class]. */
function cards(caption, columns, rows, keyOf) {
  return h('table', { class: 'cards' }, h('caption', {}, caption),
    h('thead', {}, h('tr', {}, columns.map(([head, , name]) => h('th', { scope: 'col', class: name }, head)))),
    h('tbody', {}, rows.map((row) => h('tr', { 'data-key': keyOf(row) }, columns.map(([head, of, name], at) => at
      ? h('td', { class: name, 'data-name': head }, of(row)) : h('th', { scope: 'row' }, of(row)))))));
}

const moreOf = (path, box) => box.data.pagination.next && h('p', {},
  button('more', 'Show older ones', { 'data-path': path }));

/** A measure as text, and against its limit as a bar. */
function meter(used, limit, show) {
  if (isUnknown(used)) return ['–', !isUnknown(limit) && ` (limit ${show(limit)})`];
  if (isUnknown(limit) || Number(limit) <= 0) return show(used);
  const share = Math.min(100, (100 * used) / limit);
  return [`${show(used)} of ${show(limit)} (${decimal(share)} %)`,
    svg('svg', { class: 'bar', 'aria-hidden': 'true' }, svg('rect', { width: `${share}%`, height: '100%' }))];
}

// --- 7. Pages ---

/** The page, the thing on it, and the filters, from the address. */
function readRoute() {
  const [, path = '', query = ''] = /^#\/([^?]*)\??(.*)$/.exec(location.hash) ?? [];
  const [page, id] = path.split('/');
  return { page: Object.hasOwn(PAGES, page) ? page : 'now', id: id || null, // of hex digits and hyphens, never escaped
    query: new URLSearchParams(query) };
}

const head = (title, ...children) => h('div', { class: 'page-head', 'data-key': 'head' },
  h('div', {}, h('h1', {}, title), children[0] && h('p', {}, children[0])), children.slice(1));

function nowPage() {
  const box = need('api/now');
  if (!box.data) return [boxed(box)].flat();
  const { data } = box;
  const share = percent(100 * (1 - data.recognised));
  const parts = [
    () => box.error && notRenewed(box),
    () => !isUnknown(data.recognised) && data.recognised < 0.95
      && h('p', { class: 'note warn' }, `${share} of the last log lines are not recognised: tasks may be missing.`),
    () => h('div', { 'data-key': 'metrics' }, metrics(nowMetrics(data))), () => activityChart(data),
    () => pair(usageCharts(data)), () => uptimeChart(data),
    () => pair(block('Latest', recentFeed(data.recent)), block('Node', nodeFacts(data))),
    () => data.strangers && h('p', { class: 'note', 'data-key': 'strangers' }, strangers(data), ' ',
      link('#/setup', 'More'), '.'),
  ];
  return parts.slice(0, state.parts).map((part) => part());
}

function nowMetrics({ tasks, invoices, uptime, node }) {
  const waiting = invoices.waiting_24h
    ? `${plural(invoices.waiting_24h, 'completed task waits', 'completed tasks wait')} for one`
    : `${count(invoices.total)} in all`;
  const slots = Object.entries(node.slots).map(([name, slot]) =>
    `${name.replace('Subscriber', '')} ${slot.current ?? '?'}/${slot.total}`);
  const share = uptime.percent_30d ?? watchedShare(uptime, '30d');
  return [
    ['Tasks, last 24 hours', count(tasks.tasks_24h), '',
      `${count(tasks.total)} in all, ${count(tasks.executing)} running`],
    ['Success, finished tasks', or(tasks.success_rate, decimal), tasks.success_rate === null ? '' : '%',
      `${count(tasks.failed)} failed, ${count(tasks.ended + tasks.lost)} of unknown result`],
    ['Invoices, last 24 hours', count(invoices.invoices_24h), '', waiting],
    ['Uptime, 30 days', or(share, exact), share === null ? '' : '%', uptimeNote(uptime)],
    ['Slots in use', or(node.current_slots, count), node.total_slots === null ? '' : `of ${node.total_slots}`,
      slots.join(', ') || 'not told yet'],
  ];
}

/** The outages, and how long the node was watched if that is less than the thirty days that are spoken of. */
function uptimeNote({ outages, percent_30d: share, watched_30d_min: minutes }) {
  const said = outages ? plural(outages, 'outage') : 'no outage seen';
  if (!minutes || minutes >= 29 * 1440) return said;
  return share === null ? `of the ${span(minutes * 60)} watched, ${said}` : `${said} in ${span(minutes * 60)} watched`;
}

/** The share of the minutes that were watched, however few; null of none. */
function watchedShare(uptime, name) {
  const minutes = uptime[`watched_${name}_min`];
  return minutes ? Math.floor((10000 * uptime[`up_${name}_min`]) / minutes) / 100 : null;
}

/** The shares of those spans of which enough was watched; of none, the share of what was watched. */
function uptimeShares(uptime) {
  const known = ['24h', '7d', '30d'].filter((name) => uptime[`percent_${name}`] !== null);
  return known.map((name) => `${name} ${percent(uptime[`percent_${name}`])}`).join(', ')
    || `${percent(watchedShare(uptime, '30d'))} of the ${span(60 * uptime.watched_30d_min)} watched`;
}

const OUTCOMES = [['fill-accent', (cell) => cell.completed], ['fill-bad', (cell) => cell.failed],
  ['fill-wash', (cell) => cell.ended], ['fill-hollow', (cell) => cell.lost], ['fill-soft', (cell) => cell.open]];
const outcomeLegend = [['fill-accent', 'completed'], ['fill-bad', 'failed'],
  ['fill-wash', 'ended, result unknown'], ['fill-hollow', 'lost'],
  ['fill-soft', 'open']];
const outcomeHeads = ['Completed', 'Failed', 'Ended', 'Lost', 'Open'];
const outcomeRow = (cell) => [cell.completed, cell.failed, cell.ended, cell.lost, cell.open];
const outcomes = (cell) => outcomeRow(cell).reduce((total, part) => total + part, 0);
const sum = (cells, name) => cells.reduce((total, cell) => total + cell[name], 0);

/** The cells of a series, each with the time it begins. */
const cellsOf = ({ from, cell_s: length, cells }) => cells.map((cell, place) => ({ ...cell,
  at: after(from, 1000 * length * place) }));

function activityChart({ activity }) {
  const cells = cellsOf(activity);
  const total = cells.reduce((all, cell) => all + outcomes(cell), 0);
  const parts = ['completed', 'failed', 'ended', 'lost'].map((name) => `${sum(cells, name)} ${name}`).join(', ');
  const summary = total ? `${plural(total, 'task')}: ${parts}` : 'No task; days without one are normal';
  return chart({ id: 'activity', source: activity, title: 'Last 24 hours', summary, cells, heads: outcomeHeads,
    row: outcomeRow,
    axis: dayAxis, legend: outcomeLegend, low: true, marks: () => stacked(cells, OUTCOMES) });
}

function usageCharts({ usage, stats, container }) {
  const cells = cellsOf(usage);
  const axis = usage.cell_s > 600 ? dayAxis : ['3 h ago', '90 min ago', 'now'];
  const one = (id, title, name, unit, current, limit) => {
    const known = cells.map((cell) => cell[name]).filter((value) => !isUnknown(value));
    const most = Math.max(...known, name === 'cpu' ? 10 : 1) * 1.1;
    const untold = stats && name === 'memory_mb' ? 'Not known: the engine does not tell it' : 'Not measured yet';
    const nothing = container ? untold : 'Not known: no container is seen';
    const peak = `at most ${decimal(Math.max(...known))}${unit}${limit}`;
    const summary = known.length ? `${or(current, decimal)}${unit} now, ${peak}` : nothing;
    return chart({
      id, source: usage, title, summary, cells, axis, heads: [title], top: known.length ? `${decimal(most)}${unit}`
        : '',
      row: (cell) => [or(cell[name], (value) => `${decimal(value)}${unit}`)],
      marks: () => [gridLine(cells), lineOf(cells, (cell) => cell[name], most, '', true)],
    });
  };
  const limit = isUnknown(stats?.memory.limit) ? '' : ` of ${count(stats.memory.limit)} MiB`;
  return [one('cpu', 'Processor', 'cpu', ' %', stats?.cpu, ''),
    one('memory', 'Memory', 'memory_mb', ' MiB', stats?.memory.usage, limit)];
}

function uptimeChart({ uptime }) {
  const cells = cellsOf(uptime);
  const longest = plural(uptime.longest_outage_min, 'minute');
  const outages = uptime.outages ? `${plural(uptime.outages, 'outage')}, longest ${longest}` : 'no outage seen';
  const summary = uptime.watched_30d_min ? `${uptimeShares(uptime)}; ${outages}`
    : 'Not known yet: looked at once a minute from now on';
  const marks = () => cells.map((cell, at) => {
    const name = cell.down ? 'fill-bad' : cell.up ? 'fill-good' : 'fill-none';
    const height = cell.down ? 100 : cell.up ? 62 : 14; // an outage stands out by its height too
    return svg('rect', { class: name, x: at + 0.12, y: 100 - height, width: 0.76, height, rx: 0.1 });
  });
  return chart({
    id: 'uptime', source: uptime, title: 'Uptime, 30 days', summary, cells, low: true, marks,
    axis: ['30 days ago', '15 days ago', 'now'],
    legend: [['fill-good', 'up'], ['fill-bad', 'down or silent for a while'],
      ['fill-none', 'not known']],
    heads: ['Minutes up', 'Down', 'Unknown'], row: (cell) => [cell.up, cell.down, cell.unknown],
  });
}

function recentFeed(recent) {
  if (!recent.length) return empty('Nothing has happened yet',
    'Being idle is normal. The first task appears here by itself.');
  return feed(recent.slice(0, 9).map((one) => [`${one.at} ${one.what} ${one.execution_id}`, one.what, recentWords(one),
    time(one.at)]));
}

function recentWords({ what, execution_id: id, detail }) {
  if (what === 'start') return 'The node was started';
  if (what === 'gap') return `Log lines may be missing: ${detail}`;
  if (['pay', 'penalty', 'invoice'].includes(what)) return [`Invoice ${what === 'invoice' ? 'received' : words(what)}`,
    id && [' for task ', taskLink(id)]];
  return ['Task ', taskLink(id), ` ${words(what)}`, detail && soft(`, ${detail}`)];
}

function nodeFacts({ node, container, stats }) {
  const own = [['Address', node.address ?? '–'], ['Version', node.version ?? '–'], ['Registered',
    isUnknown(node.registered) ? 'not told yet' : node.registered ? 'yes' : 'no'], ['Last log line',
    time(node.last_seen)]];
  if (!container) return [facts(own),
    small('No container is seen: it is missing, Docker cannot be asked, or tbmon reads log files instead.')];
  return facts([...own, ['Container', `${container.name}, ${container.state}`], ['Image', container.image],
    ['Started', time(container.startedAt)],
    ['Restarts', count(container.restartCount)], stats && ['Memory', meter(stats.memory.usage, stats.memory.limit,
      (value) => `${count(value)} MiB`)]].filter(Boolean));
}

// Tasks

const SPANS_MS = { '24h': 86400000, '7d': 604800000, '30d': 2592000000 };

function tasksPage({ id, query }) {
  if (id) return taskPage(id);
  const chosen = query.get('span') || '7d';
  const length = SPANS_MS[chosen];
  const asked = new URLSearchParams([...query].filter(([name, value]) => name !== 'span' && value));
  const since = length && new Date(Math.floor((now() - length) / 300000) * 300000);
  if (length) asked.set('since', since.toISOString());
  const path = `api/tasks?${asked}`;
  const charts = need(`api/tasks/stats/chart?span=${length ? chosen : '30d'}`);
  return [
    head('Tasks', 'What the node was given, and what became of it.'),
    filters(['status', 'type', 'matched', 'span'], query),
    boxed(charts, (data) => [pair(taskCharts(data, length ? chosen : '30d')), failuresBlock(data.failures)]),
    block('All tasks of this choice', boxed(need(path), () => tasksTable(path))),
  ].flat(Infinity);
}

function taskCharts(data, chosen) {
  const cells = cellsOf(data);
  const axis = { '24h': dayAxis, '7d': ['7 days ago', 'now'], '30d': ['30 days ago', 'now'] }[chosen];
  const total = cells.reduce((all, cell) => all + outcomes(cell), 0);
  const parts = ['failed', 'ended', 'lost'].map((name) => `${sum(cells, name)} ${name}`).join(', ');
  const summary = `${plural(total, 'task')}, ${parts}`;
  const most = Math.max(1, ...cells.map((cell) => cell.p95_ms ?? 0));
  const slow = cells.map((cell) => cell.p95_ms).filter((value) => !isUnknown(value));
  const peak = Math.max(1, ...cells.map(outcomes));
  return [
    chart({
      id: 'outcomes', source: data, title: 'Outcomes', summary, cells, axis, top: `${peak}`, legend: outcomeLegend,
      heads: outcomeHeads, row: outcomeRow, marks: () => [gridLine(cells), stacked(cells, OUTCOMES)],
    }),
    chart({
      id: 'durations', source: data, title: 'Time a task takes', cells, axis, top: slow.length ? duration(most) : '',
      summary: slow.length ? `slowest twentieth at ${duration(Math.max(...slow))} or less` : 'no finished task',
      heads: ['Half within', '95 % within'], row: (cell) => [or(cell.p50_ms, duration), or(cell.p95_ms, duration)],
      legend: [['fill-accent', 'half are faster'], ['fill-wash', 'up to here 95 % of them']],
      marks: () => [gridLine(cells), ranges(cells, most * 1.05)],
    }),
  ];
}

function failuresBlock(failures) {
  if (!failures.length) return null;
  const reason = (name) => (name === 'unknown' ? 'no reason was logged' : words(name));
  return block('Why tasks failed', feed(failures.map((one) =>
    [one.reason, 'failed', `${plural(one.tasks, 'task')}: ${reason(one.reason)}`, ['last ', time(one.last_at)]])));
}

const reasonOf = ({ error, exit_code: code }) => (error ? words(error) : code ? `exit code ${code}` : '');

const TASK_COLUMNS = [ // head, task -> cell, class
  ['Task', (task) => taskLink(task.execution_id)],
  ['Status', (task) => mark(task.status)],
  ['Language', (task) => task.task_type ?? '–'],
  ['Received', (task) => time(task.received_at)],
  ['Took', (task) => or(task.elapsed_ms, duration), 'end'],
  ['Gas', (task) => or(task.gas_used, (gas) => h('span', { title: `${gas} steps` }, compact(gas))), 'end roomy'],
  ['Memory', (task) => or(task.memory_peak, pages), 'end roomy'],
  ['Reason', reasonOf, 'reason-cell'],
];

function tasksTable(path) {
  const box = need(path);
  const { tasks } = box.data;
  const number = box.fresh?.size;
  const fresh = number > 0
    && button('renew', `Show ${plural(number, 'new task')}`, { class: 'pill', 'data-path': path });
  if (!tasks.length) return [fresh, emptyTasks()];
  const table = cards('Newest first. A task’s id leads to its details.', TASK_COLUMNS, tasks,
    (task) => task.execution_id);
  return [fresh, table, moreOf(path, box)];
}

function emptyTasks() {
  const newest = need('api/tasks?limit=1').data?.tasks[0];
  if (!newest) return empty('No task yet',
    'Being idle is normal: a node may wait days. The first task appears here by itself.');
  return empty('No task of this choice', 'The newest one of all was received ', time(newest.received_at), '. ',
    link('#/tasks?span=all', 'Show all tasks'));
}

function taskPage(id) {
  const path = `api/tasks/${encodeURIComponent(id)}`;
  const back = h('p', { class: 'small' }, link(state.tasksAt ?? '#/tasks', '← All tasks'));
  return [
    h('div', {}, back, h('h1', {}, 'Task ', h('span', { class: 'mono' }, shortId(id)))),
    boxed(need(path), (task) => [
      pair(block('Result', facts(resultFacts(task))), block('Course', timeline(task), facts(moreFacts(task)))),
      privateParts(path, id),
    ]),
  ].flat(Infinity).filter(Boolean);
}

function privateParts(path, id) {
  const data = need(`${path}/data`);
  const inAndOut = block('Input and output', boxed(data, ({ inputData, outputData, errorText }) => sheet(
    dataPart('Input', inputData), dataPart('Output', outputData), dataPart('Errors', errorText))));
  if (data.locked) return inAndOut;
  return [
    inAndOut,
    block('Program', boxed(need(`${path}/artifacts`), (found) => artifactList(path, found))),
    block('Log entries of this task', boxed(need(`api/logs?execution_id=${id}&limit=100`), entryList)),
  ];
}

const resultFacts = (task) => [
  ['Status', mark(task.status)], ['Reason', or(task.error, words)], ['Exit code', or(task.exit_code, count)],
  ['Took', or(task.elapsed_ms, duration)], ['Gas', meter(task.gas_used, task.gas_limit, compact)],
  ['Memory peak', meter(task.memory_peak, task.memory_limit, pages)],
  ['From cache', isUnknown(task.cached) ? '–' : task.cached ? 'yes' : 'no'], ['Language', task.task_type ?? '–'],
  ['Invoice', task.invoice_id ? link(`#/invoices?execution_id=${task.execution_id}`, task.invoice_id) : 'not yet'],
];

const moreFacts = (task) => [
  ['Execution', h('span', { class: 'mono' }, task.execution_id)],
  ['Program', h('span', { class: 'mono' }, task.task_id ?? '–')],
  ['Chain', task.chain_id ?? '–'], ['Block', task.block_number ?? '–'],
];

const timeline = ({ events }) => (events.length ? h('ol', { class: 'timeline' }, events.map((one) =>
  h('li', {}, upper(words(one.event)), soft(utc(one.at))))) : muted('No event of this task is known.'));

function dataPart(name, text) {
  if (isUnknown(text)) return [h('h3', {}, name), small('None is known.')];
  return [h('h3', {}, name, ' ', h('span', { class: 'muted small' }, plural(text.length, 'character'))),
    pre(name, text)];
}

function artifactList(path, { artifacts }) {
  if (!artifacts.length) return muted('The node’s cache does not have this task’s module, or has dropped it.');
  return list(artifacts.map((one) => [h('a', { href: `${path}/artifacts/${one.hash}`,
    download: `${one.hash}.${one.type}` }, 'Download the ', one.type, ' module'),
    ` (${count(one.size_bytes / 1024)} KiB) `, h('code', {}, one.hash)]));
}

function entryList({ logs }) {
  if (!logs.length) return muted('No entry names this task; entries go after the time set for them.');
  return h('ul', { class: 'feed entries' }, logs.map((one) => h('li', { 'data-key': one.id }, mark(one.level, ''),
    h('a', { class: 'mono', href: permalink(one) }, clip(one.message, 160)), h('span', { class: 'muted small' },
    utc(one.timestamp)))));
}

// Invoices

function invoicesPage({ query }) {
  const given = [...query].filter(([, value]) => value);
  const asked = new URLSearchParams(given.map(([name, value]) => [name === 'task' ? 'matched' : name, value]));
  const path = `api/invoices?${asked}`;
  const file = { href: `api/invoices?format=csv&limit=1000&${asked}`, download: 'invoices.csv' };
  const lead = 'What the network says it owes this node. Gas units are steps times their price, no amount of money.';
  const task = query.has('execution_id') && h('p', { class: 'small' }, `of task ${shortId(query.get('execution_id'))}`);
  return [
    head('Invoices', lead, h('p', {}, h('a', file, 'Download the newest 1,000 as CSV'))),
    boxed(need('api/invoices/summary'), (data) => [
      h('div', { 'data-key': 'metrics' }, metrics(invoiceMetrics(data))), monthsChart(data.months),
    ]),
    filters(['operation', 'task'], query, task),
    block('All invoices of this choice', boxed(need(path), ({ invoices }) => invoicesTable(path, invoices))),
  ].flat(Infinity);
}

function invoiceMetrics(data) {
  const confirmed = data.confirmed ? `${count(data.confirmed)} confirmed by the node’s event database`
    : 'none confirmed yet';
  return [
    ['Invoices', count(data.total), '', confirmed], ['Paid', count(data.paid), '', 'lines of this node'],
    ['Penalised', count(data.penalised), '', data.penalised ? 'look at these tasks first' : 'none'],
    ['Tasks without one', count(data.tasks_without_invoice), '', 'completed; an invoice may take hours'],
    ['Without a task', count(data.invoices_without_task), '', 'tbmon did not see their task'],
  ];
}

function monthsChart(months) {
  const known = new Map(months.map((one) => [one.month, one]));
  if (!months.some((one) => one.month)) return null;
  const [year, last] = months.find((one) => one.month).month.split('-').map(Number);
  const nothing = { invoices: 0, paid: 0, penalised: 0, gas_units_paid: 0, gas_units_penalised: 0 };
  const cells = Array.from({ length: Math.max(12, Math.min(36, known.size)) }, (_, back) =>
    new Date(Date.UTC(year, last - 1 - back, 1)).toISOString().slice(0, 7))
    .reverse().map((month) => known.get(month) ?? { ...nothing, month });
  const units = (value) => compact(Number(value));
  const total = cells.reduce((all, one) => all + one.invoices, 0);
  const others = (one) => one.invoices - one.paid - one.penalised;
  return chart({
    id: 'months', source: months, title: 'By month', cells, axis: [cells[0].month, cells.at(-1).month],
    summary: `${plural(total, 'invoice')} in ${plural(cells.length, 'month')}`,
    first: (one) => one.month, heads: ['Invoices', 'Paid', 'Penalised', 'Gas units paid', 'Gas units penalised'],
    row: (one) => [one.invoices, one.paid, one.penalised, units(one.gas_units_paid), units(one.gas_units_penalised)],
    legend: [['fill-accent', 'paid'], ['fill-bad', 'penalised'], ['fill-soft', 'neither']],
    top: `${Math.max(...cells.map((one) => one.invoices))}`,
    marks: () => [gridLine(cells), stacked(cells, [
      ['fill-accent', (one) => one.paid], ['fill-bad', (one) => one.penalised], ['fill-soft', others],
    ])],
  });
}

const INVOICE_COLUMNS = [ // head, invoice -> cell, class
  ['Invoice', ({ invoice_id: id }) => h('span', { class: 'mono', title: id }, or(id, (text) => `…${text.slice(-8)}`))],
  ['Task', (one) => taskLink(one.execution_id)],
  ['Time', (one) => time(one.timestamp)],
  ['Outcome', (one) => (one.operation ? mark(one.operation) : mark('invoice', 'no line of this node'))],
  ['Steps', (one) => or(one.steps, (value) => h('span', { title: `${value} steps` }, compact(Number(value)))), 'end'],
  ['Gas units', (one) => or(one.gas_units, (value) => compact(Number(value))), 'end roomy'],
  ['Confirmed', (one) => (one.confirmed ? 'yes' : 'not yet')],
];

function invoicesTable(path, invoices) {
  if (!invoices.length) {
    return empty('No invoice here', 'The network sends one after a task it has accepted, sometimes hours later.');
  }
  const caption = 'Newest first. Confirmed: the node’s event database has it too.';
  return [cards(caption, INVOICE_COLUMNS, invoices, (one) => one.id), moreOf(path, need(path))];
}

// Federation

const LIMITS = [
  'The hub’s operator sees your address and when you are connected, and can link your messages to each other and,'
    + ' after a few of them, to your wallet. They hide you from other participants and outsiders, not from the hub.',
  'Messages about tasks and invoices leave late, at a random time within an hour or a day, in ranges instead of'
    + ' figures, and under an id that all nodes share.',
  'No wallet, no task id, no block, no version and no place leaves. What leaves is listed, byte for byte, under Setup.',
  'Figures of the network come from machines nobody vouches for: take them as hearsay.',
];

function federationPage() {
  const status = need('api/federation/status');
  const said = state.said && h('p', { class: 'note', role: 'status', 'data-key': 'said' }, state.said);
  const parts = status.data?.enabled ? joinedParts() : outsideParts();
  return [
    head('Federation', 'How all the nodes do that share a little of themselves.'),
    boxed(status, (data) => [consentBanner(data), data.enabled && federationState(data), said, parts]),
  ].flat(Infinity).filter(Boolean);
}

/** Where another hub is configured than the operator opted in to: both, and what to do. */
const consentBanner = ({ status, hub, consentedTo }) => status === 'consent needed' && h('div', {
  class: 'note warn stack', role: 'alert', 'data-key': 'consent' },
  h('p', {}, 'Nothing is sent: the hub has changed. You opted in to ', h('code', {}, consentedTo.join(', ')),
    '; ', h('code', {}, hub.join(', ')), ' is configured now.'),
  h('p', {}, 'Opt in to the new hub if you want it. Else set FEDERATION_NATS_URL back and restart tbmon, or disable'
    + ' the federation.'),
  h('form', { class: 'stack', 'data-submit': 'consent' }, passwordField('consent', true), alertOf(state.federationError),
    h('div', { class: 'actions' }, h('button', {}, 'Opt in to the new hub'), button('leave', 'Disable Federation'))));

/** Where the session has not opened it yet: the password by which more leaves than now. */
const passwordField = (name, required, ...hint) => !auth()?.open.private && [username(),
  h('label', { for: `${name}-password` }, 'Task-data password'), h('input', { id: `${name}-password`, name: 'password',
    type: 'password', autocomplete: 'current-password', required, 'aria-describedby': `${name}-hint` }),
  h('p', { class: 'muted small', id: `${name}-hint` }, hint, ' ', passwordPlace())];

const federationState = ({ status, lastError, stats }) => h('div', { 'data-key': 'metrics' }, metrics([
  ['State', upper(status), '', lastError ?? (status === 'consent needed' ? 'another hub is configured'
    : 'nothing is wrong')],
  ['Messages sent', count(stats.messagesSent), '', `${count(stats.queued)} wait`],
  ['Statistics received', count(stats.messagesReceived), '', `${count(stats.ignored)} ignored`],
  ['Held back', count(stats.refused), '', 'by the last check before sending'],
]));

function outsideParts() {
  const bytes = ({ examples }) => h('div', { class: 'stack' },
    muted('A heartbeat, your newest completed task and newest invoice, or a made-up one where there is none yet,'
      + ' with keys made for this look only.'), examples.map(message));
  return [
    block('Before you join', list(LIMITS)),
    block('The exact bytes', boxed(need('api/federation/preview'), bytes)),
    block('Join', boxed(need('api/federation/settings'), (data) => sharingForm('join', data,
      small('Hub: ', data.natsServers.join(', ')), h('button', { class: 'main' }, 'Enable Federation')))),
  ];
}

const sharingForm = (name, data, hub, ...buttons) => h('form',
  { class: 'sheet stack', 'data-submit': name, 'data-key': name },
  settingsFields(data), hub, name === 'join' ? passwordField(name, true) : passwordField(name, false,
    'Needed to share more or sooner, and for a new id; never to share less or to leave.'),
  alertOf(state.federationError), h('div', { class: 'actions' }, buttons));

const message = (one) => h('div', { class: 'stack', 'data-key': `${one.subject} ${one.dueAt ?? one.timestamp ?? ''}` },
  h('h3', { class: 'mono' }, one.subject, one.dueAt && [' leaves ', utc(one.dueAt)]), pre(one.subject, one.payload));

const checkbox = (name, value, text) => h('label', { class: 'check' },
  h('input', { type: 'checkbox', name, 'data-checked': String(value) }), text);

const LATENESS = [['minimal', 'up to 60 minutes'], ['balanced', 'up to 24 hours'], ['maximum', 'never: presence only']];

const settingsFields = ({ privacyLevel, shareTasks, shareStats }) => [
  h('label', {}, 'How late messages leave', h('select', { name: 'privacyLevel', 'data-value': privacyLevel },
    LATENESS.map(([value, text]) => h('option', { value }, text)))),
  checkbox('shareTasks', shareTasks, 'Tasks, in ranges'), checkbox('shareStats', shareStats, 'Invoices, in ranges'),
];

function waitingMessages({ queued }) {
  if (!queued.length) return muted('Nothing waits.');
  const rest = queued.length - 5;
  return h('div', { class: 'stack' }, queued.slice(0, 5).map(message), rest > 0 && small(`and ${rest} more`));
}

function joinedParts() {
  const buttons = [h('button', { class: 'main' }, 'Save'), button('reset', 'New id and keys'),
    button('leave', 'Disable Federation', { class: 'danger' })];
  return [
    boxed(need('api/federation/network-stats'), networkParts),
    boxed(need('api/federation/stats'), historyChart),
    boxed(need('api/federation/peers'), peersBlock),
    // of a name, so that what is above comes and goes without taking what is being chosen here
    h('div', { class: 'pair', 'data-key': 'own' },
      block('What waits to leave', boxed(need('api/federation/preview'), waitingMessages)),
      block('Sharing', boxed(need('api/federation/settings'), (data) => sharingForm('sharing', data, null, buttons)))),
  ];
}

function networkParts(data) {
  if (data.status === 'awaiting_data') {
    return empty('No figures yet', 'The aggregator publishes them once enough nodes take part.');
  }
  const shown = (value) => or(value, count);
  const share = (value) => [or(value, decimal), isUnknown(value) ? '' : '%', 'of finished tasks'];
  return [
    h('div', { 'data-key': 'network' }, metrics([
      ['Active nodes', shown(data.activeNodes), '', `${shown(data.totalNodes)} known`],
      ['Tasks', shown(data.totalTasks), '', `${shown(data.tasksLast24h)} in 24 hours`],
      ['Success', ...share(data.successRate)], ['From cache', ...share(data.cacheHitRate)],
      ['Invoices', shown(data.totalInvoices), '', `${shown(data.invoicesLast24h)} in 24 hours`],
    ])),
    small('Received ', time(data.lastUpdated), data.snapshotAt && [', counted ', time(data.snapshotAt)],
      '. A dash is a figure that is withheld, or of which there is none yet.'),
    pair(distribution('Time a task takes', data.executionTimeDistribution),
      distribution('Gas used', data.gasUsageDistribution), distribution('Memory used', data.memoryUsedDistribution),
      distribution('Steps of invoices', data.stepsComputedDistribution),
      distribution('Languages', data.taskTypeDistribution)),
  ];
}

function historyChart({ history }) {
  const step = Math.ceil(history.length / 200) || 1;
  const cells = history.filter((_, at) => at % step === 0).reverse();
  if (cells.length < 2) return null;
  const most = Math.max(1, ...cells.map((cell) => cell.totalTasks ?? 0));
  return chart({ id: 'history', source: history, title: 'Tasks of the network, by snapshot',
    summary: `${plural(cells.length, 'snapshot')}, newest ${or(cells.at(-1).totalTasks, count)} tasks`, cells,
    top: compact(most), axis: [minute(cells[0].lastUpdated), minute(cells.at(-1).lastUpdated)],
    heads: ['Active nodes', 'Tasks'], first: (cell) => minute(cell.lastUpdated), row: (cell) =>
      [or(cell.activeNodes, count), or(cell.totalTasks, count)], marks: () => [gridLine(cells),
      lineOf(cells, (cell) => cell.totalTasks, most, '', true)] });
}

const peersBlock = ({ peers, count: number }) =>
  block('Nodes seen', peers.length ? [small(`${plural(number, 'node')}, under handles that are new each day.`),
  h('details', { 'data-fold': 'peers', open: state.open.has('peers') }, h('summary', {}, 'Show handles'),
    state.open.has('peers')
  && list(peers.map((peer) => `${peer.handle}, ${peer.seen}`), 'plain mono'))] : muted('None is published yet.'));

// Privacy and setup

const curlLine = (path) => `curl -N '${new URL(`api/${path}`, location.href)}'`;

function setupPage() {
  const doctor = need('api/doctor');
  return [
    head('Privacy and setup', 'What leaves this machine, who can read this page, and what tbmon may do here.'),
    block('What leaves this machine', boxed(need('api/federation/privacy'), leavesPart)),
    block('Everything that ever left', boxed(need(SENT), sentPart)),
    boxed(need('api/setup'), (data) => [
      pair(block('Who can read this page', list(readers(data))), block('Rights in Docker', dockerPart(data))),
      pair(block('Database', databasePart(data.database)), block('This tbmon', programPart(data))),
    ]),
    block('Doctor’s findings', boxed(doctor, doctorPart)),
    !doctor.locked && block('Who logged in', boxed(need('api/audit-log?limit=20'), auditPart)),
    block('Ask by yourself', sheet(h('p', {}, 'All that this page shows comes from an API that curl can ask.'),
      pre('Examples', ['status', 'tasks?status=failed', 'events'].map(curlLine).join('\n')),
      h('p', {}, h('a', { href: 'api/openapi.json' }, 'All paths, as an OpenAPI document')))),
    block('This browser', h('div', { class: 'actions' }, button('theme', `Theme: ${themeNow() || 'system'}`),
      button('keys', 'Keys'), auth()?.session && button('logout', 'Log out'))),
    block('About', list(ABOUT)),
  ].flat(Infinity).filter(Boolean);
}

const SENT = 'api/federation/sent?';
const ABOUT = ['tbmon is an independent project. It is not made, endorsed or supported by TrueBit.',
  'It only watches: it starts, stops and changes nothing, and it holds no key of the node.',
  'What it shows is read from the node’s log and files. An invoice is what the node was told, no proof of payment.',
  'You use it at your own risk; it comes without any warranty. Licence: MIT.'];

function leavesPart(data) {
  if (!data.enabled) {
    return h('p', { class: 'note' }, 'Nothing. tbmon opens no connection but the one to the Docker Engine.',
      ' That changes only if you ', link('#/federation', 'join the federation'), '.');
  }
  return facts([
    ['Connects to', data.connectsTo.join(', ')], ['Kinds of messages', data.kindsShared.map(words).join(', ')],
    ['Longest delay', or(data.delayUpToMinutes, (value) => span(value * 60))], ['Sent so far',
      count(data.messagesSent)],
    ['Waiting', count(data.messagesWaiting)], ['Held back', count(data.messagesRefused)],
  ]);
}

function sentPart({ messages }) {
  if (!messages.length) return muted('No message has ever left.');
  const times = (number) => (number > 1 ? `, ${count(number)} times` : '');
  return [h('div', { class: 'stack' }, messages.map((one) => h('details', { 'data-key': one.id },
    h('summary', {}, `${utc(one.timestamp)}: ${one.subject}${times(one.times)}`), pre(one.subject, one.payload)))),
  moreOf(SENT, need(SENT))];
}

const strangers = (data) => `${upper(data.strangers)}. Set API_KEY to prevent it.`;

function readers(data) {
  const isNear = /^(127\.|::1$|localhost$)/.test(data.host);
  return [
    isNear ? `This machine only: tbmon listens on ${data.host}, port ${data.port}.`
      : `Whoever reaches port ${data.port} of ${data.host}, or the port that a container publishes for it.`,
    data.strangers && strangers(data),
    data.apiKey && 'Everything asks for the API key.',
    isNear && !data.apiKey && 'Status, tasks and invoices ask for nothing.',
    'What lets more leave this machine asks for the task-data password.',
    'Log entries, input and output of tasks, and artifacts ask for the task-data password, which'
      + (data.passwordFrom === 'setting' ? ' was set by the operator.' : ' tbmon made and keeps in a file.'),
    data.allowedOrigins.length ? `Pages of other sites that may ask: ${data.allowedOrigins.join(', ')}.`
      : 'Pages of other sites are refused.',
    data.allowedHosts.length > 0 && `Further host names: ${data.allowedHosts.join(', ')}.`,
    data.trustedProxy.length > 0 && `Proxies believed: ${data.trustedProxy.join(', ')}.`,
  ].filter(Boolean);
}

function dockerPart(data) {
  if (!data.dockerUrl) return h('p', {}, data.source === 'demo' ? 'None: this is a demo with a simulated node.'
    : 'None: tbmon reads log files and does not use Docker.');
  return [h('p', {}, 'GET and HEAD only, on ', h('code', {}, data.dockerUrl), ', and only these paths:'),
    list(data.dockerCalls, 'plain mono'), small('Files are read under ', data.dockerFolders.join(', '),
    ' only. The socket itself allows more, unless a socket proxy holds tbmon to this list.')];
}

const databasePart = (data) => facts([
  ['Size', meter(data.size_bytes, data.limit_bytes, megabytes)], ['Log entries kept', plural(data.retention_days,
    'day')],
  ['Oldest log entry', time(data.oldestLogAt)], ['Tasks', count(data.tasks)], ['Invoices', count(data.invoices)],
  ['Gaps in the log', count(data.gaps)],
]);

const SOURCES = { engine: 'the container', directory: 'log files', demo: 'a simulated node' };

const programPart = (data) => facts([
  ['Version', data.version], ['Running since', time(data.startedAt)], ['Memory', or(data.memory_bytes, megabytes)],
  ['Follows', SOURCES[data.source]], ['Container', data.container],
  ['Live stream', data.streamToken ? 'asks for its token' : 'open to readers'],
]);

const doctorPart = ({ findings }) => feed(findings.map(({ what, level, remedy }) =>
  [what, level, [what, remedy && soft(`. ${remedy}`)], level]));

function auditPart({ entries }) {
  if (!entries.length) return muted('Nobody yet.');
  return feed(entries.map((one) => [one.id, one.event === 'refused' ? 'failed' : 'pay',
    `${one.event}: ${one.detail} (${one.address})`, time(one.timestamp)]));
}

let log = null; // the module of the log's page

function logsPage(route) {
  if (log) return log.logsPage(route);
  import('./log.js').then((module) => {
    log = module;
    Object.assign(ACTIONS, log.LOG_ACTIONS);
    schedule();
  }, () => { state.trouble = 'tbmon does not answer'; });
  return [h('p', { class: 'loading', role: 'status' }, 'Asking tbmon …')];
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most)} …` : text);
const permalink = (entry) => `#/logs?at=${encodeURIComponent(entry.timestamp)}&entry=${entry.id}`;

const PAGES = { now: nowPage, tasks: tasksPage, invoices: invoicesPage, logs: logsPage, federation: federationPage,
  setup: setupPage };

// --- 8. Actions: by the names in data-do, data-submit and data-change ---

const go = (page, query) => { location.hash = `#/${page}${query.size ? `?${query}` : ''}`; };

const ACTIONS = {
  skip: (_, event) => { event.preventDefault(); find('#main').focus(); },
  unfilter: () => go(readRoute().page, new URLSearchParams()),
  renew: ({ dataset: { path } }) => { state.boxes.get(path)?.fresh?.clear(); outdate(path); },
  logout: async () => { await send('api/auth/logout').catch(() => null); changeAccess(); },
  login: () => { state.isDeclined = false; askSecret('Log in', 'API key, task-data password or stream token'); },
  'close-login': () => { state.isDeclined = true; find('#login').close(); },
  theme: () => setTheme({ '': 'light', light: 'dark', dark: '' }[themeNow()]),
  keys: () => showKeys(),
  'close-keys': () => find('#keys').close(),
  more: ({ dataset: { path } }) => {
    const box = state.boxes.get(path);
    Object.assign(box, { wanted: rowsOf(box.data).length + 50, askedAt: 0 });
    outdate(path);
  },
  leave: () => share(null, 'api/federation/disable'),
  reset: (pressed) => share(pressed.form, 'api/federation/reset'),
};

const SUBMITS = {
  login: async (form) => {
    const secret = find('[type="password"]', form).value;
    form.reset();
    try {
      await send('api/auth/login', { secret });
      state.loginError = '';
      find('#login').close();
      changeAccess();
    } catch (error) {
      state.loginError = sentence(error.message);
      if (find('#login').open) find('#login [role]').textContent = state.loginError;
    }
    schedule();
  },
  filter: (form) => {
    const fields = [...new FormData(form)].filter(([, value]) => value);
    go(readRoute().page, new URLSearchParams(fields));
  },
  join: async (form) => {
    await share(form, 'api/federation/settings', { ...chosenSharing(form), enabled: true }, 'PUT');
  },
  consent: (form) => share(form, 'api/federation/enable'),
  sharing: (form) => share(form, 'api/federation/settings', chosenSharing(form), 'PUT'),
  shortcuts: (form) => localStorage.setItem('tbmon-keys', find('input', form).checked ? 'on' : 'off'),
};

const chosenSharing = (form) => ({ privacyLevel: form.privacyLevel.value, shareTasks: form.shareTasks.checked,
  shareStats: form.shareStats.checked });

/** Change what is shared, with the password in the form; a refusal is said beside the form. */
async function share(form, path, body, method) {
  const field = form?.password;
  try {
    const answer = await send(path, body, method, field?.value);
    if (field) field.value = '';
    Object.assign(state, { federationError: '', said: answer.message ? sentence(answer.message) : 'Saved.' });
  } catch (error) {
    Object.assign(state, { federationError: sentence(error.message), said: '' });
  }
  outdate('api/federation');
}

function askSecret(title, label) {
  const dialog = find('#login');
  if (dialog.open) return;
  dialog.replaceChildren(h('form', { class: 'stack', 'data-submit': 'login' }, h('h2', { id: 'login-title' }, title),
    muted('What you were looking at stays as it is.'), username(), h('label', { for: 'secret' }, label),
    h('input', { id: 'secret', type: 'password', autocomplete: 'current-password', required: true, autofocus: true }),
      alertOf(),
    h('div', { class: 'actions' }, h('button', { class: 'main' }, 'Log in'), button('close-login', 'Not now'))));
  dialog.showModal();
}

// A cookie, so that the server sends the page in these colours: nothing flashes.
const themeNow = () => document.documentElement.dataset.theme ?? '';

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  const place = new URL('.', location.href).pathname;
  document.cookie = `tbmon-theme=${theme}; Max-Age=${theme ? 31536000 : 0}; SameSite=Strict; Path=${place}`;
  schedule();
}

const KEYS = [['g then n, t, i, l, f, s', 'go to a page'], ['/', 'go to the text filter of the log'], ['Esc', 'close'],
  ['?', 'this list']];

function showKeys() {
  find('#keys').replaceChildren(h('div', { class: 'stack' }, h('h2', { id: 'keys-title' }, 'Keys'),
    facts(KEYS.map(([key, text]) => [key, text])),
    h('form', { 'data-change': 'shortcuts' }, h('label', { class: 'check' }, h('input',
      { type: 'checkbox', checked: hasShortcuts() }), 'Single keys work')), button('close-keys', 'Close')));
  find('#keys').showModal();
}

const hasShortcuts = () => localStorage.getItem('tbmon-keys') !== 'off';
let lastKey = '';

function pressed(event) {
  const drawing = event.target.closest('[data-chart]');
  if (drawing && chartKey(drawing, event.key)) return event.preventDefault();
  if (!hasShortcuts() || event.ctrlKey || event.metaKey || event.altKey
    || event.target.closest('input, select, dialog')) return null;
  const page = lastKey === 'g' && { n: 'now', t: 'tasks', i: 'invoices', l: 'logs', f: 'federation',
    s: 'setup' }[event.key];
  lastKey = event.key;
  if (page) go(page === 'now' ? '' : page, new URLSearchParams());
  else if (event.key === '?') showKeys();
  else if (event.key === '/') (find('[name="search"]') ?? { focus: () => go('logs', new URLSearchParams()) }).focus();
  else return null;
  return event.preventDefault();
}

function chartKey(drawing, key) {
  const at = Number(find('.cursor', drawing).dataset.at ?? -1);
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e6, End: 1e6 }[key];
  if (step) readChart(drawing, at + step);
  else if (key === 'Enter') log?.openPlace(drawing);
  return Boolean(step);
}

// --- 9. Start ---

/** Everything that the address and the answers say. */
function draw() {
  const route = readRoute();
  const isNew = state.seen !== `${route.page}/${route.id}`;
  document.body.dataset.page = route.page;
  if (route.page === 'tasks' && !route.id) state.tasksAt = location.hash;
  morph(view, PAGES[route.page](route).filter(Boolean));
  for (const field of view.querySelectorAll('[data-value], [data-checked]')) setField(field, isNew);
  for (const item of document.querySelectorAll('[data-nav]')) item.toggleAttribute('aria-current', false);
  find(`[data-nav="${route.page}"]`).setAttribute('aria-current', 'page');
  drawVerdict();
  drawSide();
  drawTrouble();
  if (route.page === 'logs') log?.repaint();
  if (isNew && state.seen !== null) {
    scrollTo(0, 0);
    find('#main').focus({ preventScroll: true });
  }
  state.seen = `${route.page}/${route.id}`;
  if (state.parts < 8) {
    state.parts += 1;
    setTimeout(schedule);
  }
  if (auth() && !auth().open.local && !state.isDeclined) askSecret('tbmon asks for its API key', 'API key');
}

/** What was chosen before stands in the field; what the reader is choosing is left alone. */
function setField(field, isNew) {
  const { value, checked, shown } = field.dataset;
  const wanted = value ?? checked;
  if (shown === wanted && !isNew) return;
  field.dataset.shown = wanted;
  if (checked === undefined) field.value = value;
  else field.checked = checked === 'true';
}

function drawVerdict() {
  const { data } = state.boxes.get('api/now') ?? {};
  const route = readRoute().page;
  const verdict = data && (data.verdict ?? STARTING);
  const titles = { now: verdict?.state ?? 'no answer', tasks: 'Tasks', invoices: 'Invoices', logs: 'Logs',
    federation: 'Federation', setup: 'Setup' };
  document.title = `${state.trouble && route === 'now' ? 'no answer' : titles[route]} · tbmon`;
  if (!verdict) return;
  find('#verdict').dataset.state = verdict.state;
  for (const [name, text] of Object.entries({ state: upper(verdict.state), reason: sentence(verdict.reason),
    advice: sentence(verdict.advice) })) {
    const element = find(`[data-say="${name}"]`);
    if (element.textContent !== text) element.textContent = text;
  }
  morph(find('#signs'), [
    verdict.as_of && h('p', {}, 'As of ', h('strong', {}, time(verdict.as_of)), ', before tbmon was started'),
    verdict.since && h('p', {}, 'Since ', h('strong', {}, time(verdict.since)), h('br'), minute(verdict.since)),
    data.node.last_seen && h('p', {}, 'Last sign of life ', h('strong', {}, time(data.node.last_seen))),
    h('p', {}, 'A node writes every two minutes, tasks or none.')].filter(Boolean));
}

const MODES = { live: 'Live', polling: 'Asking every 5 s', connecting: 'Connecting', hidden: 'Resting' };

function drawSide() {
  const { mode, why } = state.live;
  const data = state.boxes.get('api/now')?.data;
  const known = auth();
  const verdict = data?.verdict?.state;
  const needsToken = mode === 'polling' && known && !known.open.stream;
  morph(find('#side'), [data?.demo && h('span', { class: 'badge' }, 'Demo', h('span', { class: 'wide' }, ' data')),
    verdict && readRoute().page !== 'now' && h('a', { href: '#/', class: 'small' }, mark(verdict, upper(verdict))),
    h('span', { title: why, role: 'status' }, h('span', { class: `beat ${mode}` }), h('span', {}, MODES[mode]), why
      && h('span', { class: 'wide' }, `: ${why}`)),
    needsToken && button('login', 'Log in', { class: 'bare' }), known?.session && button('logout', 'Log out',
      { class: 'bare wide' }),
    button('theme', `Theme: ${themeNow() || 'system'}`, { class: 'bare wide' }), button('keys', 'Keys',
      { class: 'bare wide' })].filter(Boolean));
}

function drawTrouble() {
  const box = state.boxes.get('api/now');
  document.body.classList.toggle('stale', Boolean(state.trouble));
  const element = find('#trouble');
  element.hidden = !state.trouble;
  morph(element, state.trouble ? [h('span', {}, `${sentence(state.trouble)} `), box?.data
    ? h('span', {}, 'What stands here is from ', time(new Date(box.at + state.skewMs).toISOString()), '.')
    : h('span', {}, 'It is asked again by itself.')] : []);
}

function takeFacts() {
  state.boxes.set(AUTH, { data: null, error: null, locked: false, stale: true, loading: false, at: 0,
    usedAt: Infinity });
  const known = JSON.parse(find('#facts').textContent);
  if (!known) return;
  if (performance.getEntriesByType('navigation')[0]?.transferSize === 0) { // kept by the browser, who knows how long
    for (const element of document.querySelectorAll('[data-say]')) element.textContent = '';
    find('[data-say="state"]').textContent = 'No answer yet';
    find('#verdict').dataset.state = 'none';
    return;
  }
  const box = { error: null, locked: false, stale: false, loading: false, at: Date.now(), askedAt: Date.now(),
    usedAt: Date.now() };
  state.boxes.set('api/now', { ...box, data: known.now });
  state.boxes.get(AUTH).data = known.auth;
  state.live.last = known.now.stream;
}

function hideOrShow() {
  if (document.hidden) {
    hush();
    setMode('hidden', '');
    return;
  }
  setMode('connecting', '');
  listen();
  poll();
}

export {
  after, ask, both, boxed, button, cellsOf, chart, CHOICES, clip, count, dayAxis, empty, filters, find, go, h, head,
    minute, morph, muted, need, now, permalink, plural, readRoute, schedule, sentence, soft, stacked, state, sum,
    taskLink, time, unlock, utc, words,
};

const on = (name, act, options) => document.addEventListener(name, act, options);
const at = (event, name) => event.target.closest?.(`[data-${name}]`);

on('click', (event) => {
  const target = at(event, 'do');
  if (target) ACTIONS[target.dataset.do](target, event);
  else if (at(event, 'chart')) log?.openPlace(at(event, 'chart'));
});
on('submit', (event) => {
  event.preventDefault();
  SUBMITS[at(event, 'submit')?.dataset.submit]?.(event.target);
});
on('change', (event) => SUBMITS[at(event, 'change')?.dataset.change]?.(at(event, 'change')));
on('pointermove', (event) => {
  const drawing = at(event, 'chart');
  if (!drawing) return;
  const box = drawing.getBoundingClientRect();
  readChart(drawing, Math.floor(((event.clientX - box.left) / box.width) * plots.get(drawing.dataset.chart).length));
});
on('toggle', (event) => {
  const name = event.target.dataset?.fold;
  if (!name) return;
  state.open[event.target.open ? 'add' : 'delete'](name);
  schedule();
}, true);
on('scroll', (event) => event.target.matches?.('.log') && log.scrolled(event.target), true);
on('keydown', pressed);
on('visibilitychange', hideOrShow);
addEventListener('hashchange', schedule);
setInterval(tick, 1000);
setInterval(poll, POLL_MS);
takeFacts();
draw();
if (auth()) listen();
else changeAccess();
