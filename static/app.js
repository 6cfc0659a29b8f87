// tbmon's dashboard. index.html says what stands where: `data-path` is what a panel asks for, `data-list` the list in
// the answer that becomes rows, `data-field` and `data-column` a value and its format, which is `text` if not named.

const POLL_MS = 5000;
const TIMEOUT_MS = 10000;
const EXCERPT = 600; // characters of a log message: a task's input may be megabytes long
const STARTING = { state: 'starting', reason: 'tbmon has just started and is still looking', advice: 'Wait a little.' };
const MARKS = {
  working: 'check', completed: 'check', degraded: 'half', warn: 'half', down: 'cross', failed: 'cross', error: 'cross',
  idle: 'diamond', received: 'diamond', blind: 'question', lost: 'question', executing: 'run',
};

const find = (selector, root = document) => root.querySelector(selector);
const [dialog, keyForm, logs, logForm] = ['#task', '#key-form', '#logs', '#logs form'].map((name) => find(name));
const shown = new WeakMap(); // table row: its item
const secrets = { key: '', password: '' }; // they stand here only, so that a reload forgets them
let [locked, busy, timer] = [false, false, 0]; // locked: tbmon wants an API key that this page has not got
let skewMs = 0; // the monitor's clock minus this one; ages are told by the monitor's

// --- 1. Formatting ---

const isUnknown = (value) => value === null || value === undefined || value === '';
const now = () => new Date(Date.now() + skewMs).toISOString();
const utc = (iso) => iso.replace('T', ' ').replace('Z', ' UTC');
const inNumbers = (options) => new Intl.NumberFormat('en', options).format;
const count = inNumbers({ maximumFractionDigits: 0 });
const decimal = inNumbers({ maximumFractionDigits: 1, roundingMode: 'trunc' }); // 99.96 % success is not all
const compact = inNumbers({ notation: 'compact', maximumFractionDigits: 1 });
const percent = (value) => `${decimal(value)} %`;
const text = (value) => (isUnknown(value) ? '–' : typeof value === 'number' ? count(value) : String(value));

function ago(iso) {
  const seconds = Math.max(0, (Date.parse(now()) - Date.parse(iso)) / 1000);
  const units = [[172800, 86400, 'days'], [3600, 3600, 'h'], [60, 60, 'min'], [0, 1, 's']];
  const [, size, unit] = units.find(([from]) => seconds >= from);
  return `${Math.floor(seconds / size)} ${unit} ago`;
}

function duration(ms) {
  if (ms < 1000) return `${ms} ms`;
  return ms < 60000 ? `${decimal(ms / 1000)} s` : `${Math.floor(ms / 60000)} min ${Math.floor((ms % 60000) / 1000)} s`;
}

const FORMATS = { // value, item -> text, or [text, title]
  text, count, percent, duration,
  compact: (value) => [compact(value), count(value)],
  excerpt: (value) => (value.length > EXCERPT ? `${value.slice(0, EXCERPT)} … (cut here)` : value),
  version: (value) => `version ${value}`,
  words: (value) => value.replaceAll('_', ' '),
  sentence: (value) => value.replace(/`([^`]*)`/g, '“$1”').replace(/^(?!tbmon)./, (letter) => letter.toUpperCase()),
  truth: (value) => (value ? 'yes' : 'no'),
  exact: (iso) => `${utc(iso)} (${ago(iso)})`,
  gas: (used, { gas_limit: limit }) => isUnknown(limit) ? [compact(used), count(used)]
    : [`${compact(used)} of ${compact(limit)}`, `${count(used)} of ${count(limit)}`],
  memory: (used) => `${text(used.usage)} of ${text(used.limit)} MB (${text(used.percent)} %)`,
  slots: (node) => `${text(node.current_slots)} of ${text(node.total_slots)}`,
  pages: (pages) => [`${decimal(pages / 16)} MiB`, `${count(pages)} pages of 64 KiB`],
};

// --- 2. API ---

/** Ask tbmon; throws an Error whose `status` is the HTTP status, or 0 if nothing of tbmon's came back. */
async function ask(path, headers = {}) {
  const sent = secrets.key ? { ...headers, Authorization: `Bearer ${asHeader(secrets.key)}` } : headers;
  const options = { headers: sent, cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS) };
  const response = await fetch(path, options).catch(() => null);
  const body = await response?.json().catch(() => null);
  if (!body) throw Object.assign(new Error('tbmon does not answer'), { status: 0 });
  if (!response.ok) throw Object.assign(new Error(`tbmon says: ${text(body.error)}`), { status: response.status });
  return body;
}

/** The UTF-8 bytes of a secret, each as a character: fetch takes no others, and curl sends the same. */
const asHeader = (secret) => String.fromCharCode(...new TextEncoder().encode(secret));

// --- 3. Rendering ---

/** Show words or [words, title]; written only if they differ, so that selections stay and no reader repeats them. */
function showText(element, words) {
  const [content, title = ''] = [words].flat();
  if (element.textContent !== content) element.textContent = content;
  if (element.title !== title) element.title = title;
}

function fill(elements, data) {
  for (const element of elements) {
    const [path, as = 'text'] = element.dataset.field.split(' ');
    const value = path.split('.').reduce((part, name) => part?.[name], data);
    const parts = find(`template#${as}`);
    if (parts && !element.firstElementChild) element.replaceChildren(parts.content.cloneNode(true));
    if (parts) SHOWS[as](element, value);
    else showText(element, isUnknown(value) ? text(value) : FORMATS[as](value, data));
  }
}

function showTime(element, iso) {
  const known = !Number.isNaN(Date.parse(iso ?? ''));
  showText(element, known ? [ago(iso), utc(iso)] : text(null));
  element.toggleAttribute('datetime', known);
  if (known) element.dateTime = iso;
}

const SHOWS = { // for the formats that consist of parts; each has a template of its name
  time: (element, iso) => showTime(element.firstElementChild, iso),
  opener: (element, id) => {
    element.firstElementChild.disabled = isUnknown(id);
    showText(element.firstElementChild, [text(id).slice(0, 8), id]);
  },
  mark: (element, word) => { // a state as shape and word; the colour goes with the shape
    element.dataset.mark = MARKS[word] ?? 'dot';
    find('use', element).setAttribute('href', `#${element.dataset.mark}`);
    showText(element.lastElementChild, text(word));
  },
};

/** Show a list as rows; a row that stays is not replaced, so that focus and selection survive. */
function showRows(panel, list) {
  const body = find('tbody', panel);
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let next = body.firstElementChild;
  for (const item of list) {
    const key = String(item.id ?? `${item.at} ${item.event}`);
    const row = known.get(key) ?? makeRow(panel, key);
    known.delete(key);
    shown.set(row, item);
    fill(row.cells, item);
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  }
  for (const row of known.values()) row.remove();
  find('table', panel).hidden = !list.length;
  find('.empty', panel).hidden = list.length > 0;
}

function clearRows(panel) {
  showRows(panel, []);
  find('.empty', panel).hidden = true; // it would say that there are none
  showText(find('.error', panel), '');
}

function makeRow(panel, key) {
  const row = document.createElement('tr');
  row.dataset.key = key;
  for (const { dataset, className } of find('thead tr', panel).cells) {
    const cell = document.createElement(dataset.column.endsWith(' opener') ? 'th' : 'td');
    if (cell.matches('th')) cell.scope = 'row';
    if (className) cell.className = className;
    cell.dataset.field = dataset.column;
    row.append(cell);
  }
  return row;
}

function showStatus(status) {
  const { container, recognised, verdict } = status;
  skewMs = Date.parse(status.timestamp) - Date.now() || 0;
  fill(document.querySelectorAll('#verdict [data-field]'), verdict ?? STARTING);
  fill(document.querySelectorAll('#node [data-field]'), status);
  const visible = { report: 1, demo: status.demo, since: verdict?.since, container, 'no-container': !container };
  for (const [id, isVisible] of Object.entries(visible)) find(`#${id}`).hidden = !isVisible;
  const part = (recognised ?? 1) < 0.95 ? percent(100 * (1 - recognised)) : '';
  showText(find('#unrecognised'), part && `${part} of the last log lines are not recognised: tasks may be missing.`);
  showTime(find('#answered'), now());
  document.title = `${(verdict ?? STARTING).state} · tbmon`;
}

/** Say in words why what stands on the page is old; an empty text takes it back. */
function showTrouble(words) {
  const answered = find('#answered').dateTime;
  document.body.classList.toggle('stale', Boolean(words));
  showText(find('#trouble [role]'), words);
  find('#age').hidden = !words || !answered;
  if (answered) showTime(find('#age time'), answered);
  if (words) document.title = 'no answer · tbmon';
}

// --- 4. Polling and start ---

/** Ask for one panel and show it; gives the error, if any, which the panel tells too. */
async function refreshPanel(panel, headers) {
  const { path, list } = panel.dataset;
  let error = null;
  try {
    const answer = await ask(path, headers);
    if (path !== panel.dataset.path) return null; // another task was opened meanwhile
    fill(panel.querySelectorAll('[data-field]:not(tbody *)'), answer);
    if (list) showRows(panel, answer[list]);
  } catch (caught) {
    error = caught;
  }
  showText(find('.error', panel), error ? `Not refreshed: ${error.message}` : '');
  return error;
}

async function refreshLogs(isFirst = false) {
  if (!secrets.password) return;
  const error = await refreshPanel(logs, { 'X-Task-Data-Password': asHeader(secrets.password) });
  const isWrong = error?.status === 401;
  if (isWrong || (error && isFirst)) secrets.password = '';
  logForm.hidden = Boolean(secrets.password);
  showText(find('[role]', logForm), isWrong ? 'Wrong password.' : '');
  if (isWrong) clearRows(logs);
}

function openTask(event) {
  const row = event.target.closest('tr:has(button)');
  const item = row && shown.get(row);
  const isSelecting = !event.target.closest('button') && getSelection().toString();
  if (!item?.execution_id || isSelecting) return;
  dialog.dataset.path = `api/tasks/${encodeURIComponent(item.execution_id)}`;
  fill(dialog.querySelectorAll('dl [data-field]'), { execution_id: item.execution_id });
  clearRows(dialog);
  dialog.showModal();
  refreshPanel(dialog);
}

async function refresh() {
  const error = await ask('api/status').then(showStatus).catch((caught) => caught);
  locked = error?.status === 401;
  keyForm.hidden = !locked;
  showText(find('[role]', keyForm), locked && secrets.key ? 'Wrong API key.' : '');
  if (locked) secrets.key = ''; // a refused key is not tried again: failures are counted
  showTrouble(locked ? 'tbmon asks for its API key' : error?.message ?? '');
  if (error) return;
  const panels = document.querySelectorAll('[data-path]:not(#logs, dialog:not([open]))');
  await Promise.all([refreshLogs(), ...[...panels].map((panel) => refreshPanel(panel))]);
}

/** Refresh and come back later; not while hidden, and not without the key that tbmon asked for. */
async function poll() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  await refresh();
  busy = false;
  if (!locked) timer = setTimeout(poll, POLL_MS);
}

function takeSecret(form, name, use) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    secrets[name] = find('input', form).value;
    form.reset();
    use();
  });
}

takeSecret(keyForm, 'key', poll);
takeSecret(logForm, 'password', () => refreshLogs(true));
find('main').addEventListener('click', openTask);
document.addEventListener('visibilitychange', poll);
setInterval(() => document.querySelectorAll('time[datetime]').forEach((time) => showTime(time, time.dateTime)), 1000);
poll();
