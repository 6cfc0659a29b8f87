// The log's page: a list that holds a bounded number of entries and only the rows in view, following the stream.

import {
  after, ask, both, boxed, button, cellsOf, chart, CHOICES, clip, count, dayAxis, empty, filters, find, go, h, head,
    morph, muted, need, now, permalink, plural, readRoute, schedule, soft, stacked, state, sum,
    taskLink, time, unlock, utc, words,
} from './app.js';

// The list keeps ENTRIES entries at most, each cut to CLIP characters; the rest of one is asked for when it is opened.
const [ENTRIES, CLIP, FIRST, DETAIL_REM] = [2000, 400, 200, 20];
const tail = { key: null, entries: [], byId: new Map(), pending: [], following: true, waiting: 0, errors: 0,
  done: false, busy: false, locked: false, error: null, open: null, full: null, aim: null, painting: 0 };

const slim = ({ id, timestamp, level, type, execution_id, message: text }) => ({ id, timestamp, level, type,
  execution_id, text: clip(text.split('\n', 1)[0], CLIP) });
Object.assign(CHOICES, {
  level: ['Level', ['', 'any'], 'error', 'warn', 'info', 'debug', 'verbose'],
  kind: ['Kind', ['', 'any'], 'task_received', 'task_download', 'task_start', 'execution_output', 'task_completed',
    'task_failed',
    'task_published', 'invoice', 'semaphore', 'registration', 'info', 'raw'],
});

const logFilters = (query) => Object.entries({ level: query.get('level'), type: query.get('kind'),
  search: query.get('search') }).filter(([, value]) => value);

export function logsPage({ query }) {
  const chartBox = need('api/logs/chart?span=24h');
  const source = need('api/logs/status').data;
  const isLocked = tail.locked || chartBox.locked;
  if (tail.key !== query.toString() && !tail.busy && !chartBox.locked) openTail(query);
  const search = [h('label', {}, 'Text', h('input',
    { type: 'search', name: 'search', 'data-value': query.get('search') ?? '' })), h('label', {}, 'Until (UTC)',
    h('input', { type: 'datetime-local', name: 'until', 'data-value': (query.get('until') ?? '').slice(0, 16) }))];
  return [head('Logs', source ? ['From ', { engine: 'the container', directory: 'log files',
    demo: 'a simulated node' }[source.source], '; last entry ', time(source.lastLogAt), '.'] : ''),
    source?.gaps.length > 0 && h('p', { class: 'note warn' }, `Lines may be missing: ${source.gaps[0].reason}, `,
      both(source.gaps[0].to ?? source.gaps[0].from)),
    isLocked ? unlock() : [boxed(chartBox, densityChart), filters(['level', 'kind'], query, search),
      logFrame(query)]].flat(Infinity);
}

function densityChart(data) {
  const { most } = data;
  const cells = cellsOf(data);
  const total = sum(cells, 'entries');
  const isCut = cells.some((cell) => cell.entries === most);
  const [errors, warnings] = [sum(cells, 'errors'), sum(cells, 'warnings')];
  const summary = [`${count(total)}`, plural(errors, 'error'), plural(warnings, 'warning')]
    .map((text) => (isCut ? `at least ${text}` : text)).join(', ');
  return chart({ id: 'density', source: data, title: 'Entries in 24 hours',
    summary: `${summary}; a click or Enter goes there`,
    cells, low: true, axis: dayAxis,
    heads: ['Entries', 'Errors', 'Warnings'], row: (cell) =>
      [cell.entries, cell.errors, cell.warnings].map((value) => (cell.entries === most ? `at least ${value}` : value)),
    legend: [['fill-bad', 'error'], ['fill-warn', 'warning'], ['fill-soft', 'other']],
      marks: () => stacked(cells, [['fill-bad', (cell) => cell.errors], ['fill-warn', (cell) => cell.warnings],
      ['fill-soft', (cell) => cell.entries - cell.errors - cell.warnings]]) });
}

function logState(isPast) {
  if (tail.error) return `Not read: ${tail.error}`;
  if (tail.busy) return 'Reading …';
  if (isPast) return 'An earlier time';
  if (tail.following) return 'Following';
  return tail.waiting ? `Paused, ${plural(tail.waiting, 'new entry', 'new entries')}` : 'Paused';
}

function logFrame(query) {
  const isPast = query.has('until') || query.has('at');
  const status = logState(isPast);
  return h('div', { class: 'log-frame', 'data-key': 'log-frame' },
    h('div', { class: 'log-bar' }, h('span', { role: 'status' }, status), tail.errors > 0
      && h('span', { class: 'bad', role: 'status' }, plural(tail.errors, 'new error')),
      isPast && button('later', 'Later'), isPast || !tail.following ? button('follow', 'Follow')
        : button('pause', 'Pause'), h('span', {}, `${count(tail.entries.length)} here`)),
    !tail.busy && !tail.entries.length ? empty(query.size ? 'No entry of this choice' : 'No entry yet', query.size
      ? 'Loosen the filters, or choose another time.'
      : 'The node writes one about every two minutes. If none comes, run “tbmon.py doctor” on this host.') : null,
    h('div', { class: 'log', 'data-keep': 'log', role: 'log', 'aria-live': 'off',
      'aria-label': 'Log entries, oldest first', tabindex: 0 }, h('div', { class: 'log-space' })));
}

/** Read the entries that the address asks for: the newest, or those before a time. */
async function openTail(query) {
  const key = query.toString();
  const place = Date.parse(query.get('at') ?? `${query.get('until')?.slice(0, 16)}Z`);
  const end = place ? new Date(place + (query.has('at') ? 1000 : 0)).toISOString() : null;
  Object.assign(tail, { key, entries: [], pending: [], waiting: 0, errors: 0, done: false, error: null, locked: false,
    following: !end, open: query.get('entry'), aim: end && (query.get('entry') ?? 'end'), full: null,
    filters: logFilters(query) });
  tail.byId.clear();
  await readOlder(end);
  if (tail.key !== key) return;
  if (tail.open) openEntry(tail.open);
}

/** Put older entries before those that are here; the reader's place stays. */
async function readOlder(until = tail.entries[0] && after(tail.entries[0].timestamp, 1)) {
  if (tail.busy || tail.done) return;
  const { key } = tail;
  tail.busy = true;
  schedule();
  try {
    const asked = new URLSearchParams([...tail.filters, ['limit', FIRST], ...(until ? [['until', until]] : [])]);
    const { logs } = await ask(`api/logs?${asked}`);
    if (tail.key === key) {
      addEntries(logs.reverse().map(slim), true);
      tail.done = logs.length < FIRST;
    }
  } catch (error) {
    Object.assign(tail, { locked: error.status === 401, error: error.status === 401 ? null : error.message,
      done: true });
  }
  tail.busy = false;
  schedule();
}

function addEntries(entries, atFront = false) {
  const fresh = entries.filter((entry) => !tail.byId.has(entry.id));
  tail.error = null;
  for (const entry of fresh) tail.byId.set(entry.id, entry);
  const list = find('.log');
  const height = rowHeight(list);
  if (atFront) {
    tail.entries = [...fresh, ...tail.entries];
    const cut = tail.entries.splice(ENTRIES);
    for (const entry of cut) tail.byId.delete(entry.id);
    if (cut.length) Object.assign(tail, { following: false, waiting: tail.waiting + cut.length });
    if (list) paintLog(list.scrollTop + height * fresh.length);
  } else {
    tail.entries.push(...fresh);
    for (const entry of tail.entries.splice(0, Math.max(0, tail.entries.length - ENTRIES))) {
      tail.byId.delete(entry.id);
      tail.done = false;
    }
    paintLog();
  }
}

const matches = (entry, text) => tail.filters.every(([name, value]) => (name === 'search'
  ? text.toLowerCase().includes(value.toLowerCase()) : entry[name] === value));

const isInView = () => document.body.dataset.page === 'logs';

/** A live entry: kept until the next frame, or only counted while the reader looks at something else. */
export function hearEntry(entry) {
  if (tail.key === null || !matches(entry, entry.message)) return;
  if (!isInView() && tail.following) {
    forget(); // read anew when the reader comes back, rather than with a hole
    return;
  }
  const known = tail.byId.get(entry.id);
  if (known) {
    Object.assign(known, slim(entry));
    return;
  }
  if (entry.level === 'error') tail.errors += 1;
  if (tail.following) tail.pending.push(slim(entry));
  else tail.waiting += 1;
  if (tail.pending.length > ENTRIES) tail.pending.shift();
  if (isInView()) tail.painting ||= setTimeout(flushEntries, 100);
}

function flushEntries() {
  tail.painting = 0;
  addEntries(tail.pending.splice(0));
  schedule();
}

const rowHeight = (list) => (list ? parseFloat(getComputedStyle(list).getPropertyValue('--row')) : 28);

/** Without a stream: read what came after the newest entry here, or all anew if that is more than a page. */
export async function catchUp() {
  const { key } = tail;
  if (key === null || !tail.following || tail.busy || !isInView()) return;
  const since = tail.entries.length ? [['since', tail.entries.at(-1).timestamp]] : [];
  try {
    const { logs } = await ask(`api/logs?${new URLSearchParams([...tail.filters, ['limit', FIRST], ...since])}`);
    if (tail.key !== key || tail.busy) return;
    if (logs.length < FIRST) addEntries(logs.reverse().map(slim));
    else forget();
  } catch (error) {
    tail.error = error.message;
  }
  schedule();
}

/** Let go of all entries: others may be seen, or some were missed. */
export function forget() {
  Object.assign(tail, { key: null, entries: [], full: null, locked: false });
}

/** Paint again, at the place that the address asks for if it has just been opened. */
export function repaint() {
  const list = find('.log');
  if (tail.aim && list && tail.entries.length) {
    const at = tail.entries.findIndex((entry) => entry.id === tail.aim);
    tail.aim = null;
    const place = at < 0 ? tail.entries.length : at;
    paintLog(Math.max(0, place * rowHeight(list) - 60));
  } else paintLog(tail.following ? undefined : list?.scrollTop);
}

/** Only the rows in view exist; the rest of the list is empty space of the same height. */
function paintLog(scrollTop) {
  const list = find('.log');
  if (!list) return;
  const [space, height, detail] = [list.firstElementChild, rowHeight(list), DETAIL_REM * 16];
  const openAt = tail.open ? tail.entries.findIndex((entry) => entry.id === tail.open) : -1;
  const topOf = (at) => at * height + (openAt >= 0 && at > openAt ? detail : 0);
  space.style.height = `${topOf(tail.entries.length)}px`;
  if (scrollTop !== undefined) list.scrollTop = scrollTop;
  else if (tail.following) list.scrollTop = list.scrollHeight;
  const from = Math.max(0, Math.floor((list.scrollTop - detail) / height) - 4);
  const to = Math.min(tail.entries.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
  const rows = tail.entries.slice(from, to).map((entry, at) => entryRow(entry, topOf(from + at)));
  if (openAt >= from && openAt < to) rows.push(entryDetail(tail.entries[openAt], topOf(openAt) + height));
  morph(space, rows);
}

const entryRow = (entry, top) => h('button', { type: 'button',
  class: `log-row ${entry.level === 'error' ? 'error' : entry.level === 'warn' ? 'warn' : ''}`,
  style: { top: `${top}px` }, 'data-key': entry.id, 'data-do': 'expand', 'data-id': entry.id,
  'aria-expanded': String(entry.id === tail.open) },
  h('span', { class: 'when', title: utc(entry.timestamp) }, entry.timestamp.slice(11, 19)),
    h('span', { class: 'level' }, entry.level ?? '–'), h('span', { class: 'kind' }, words(entry.type)),
    h('span', { class: 'text' }, entry.text));

function entryDetail(entry, top) {
  const full = tail.full?.id === entry.id ? tail.full : null;
  const attributes = {
    class: 'log-detail', style: { top: `${top}px` }, 'data-key': `detail-${entry.id}`, tabindex: 0, role: 'region',
    'aria-label': 'The entry in full',
  };
  const about = h('p', { class: 'actions small' }, h('span', {}, utc(entry.timestamp)), full && originOf(full),
    entry.execution_id && h('span', {}, 'Task ', taskLink(entry.execution_id)),
    h('a', { href: permalink(entry) }, 'Link to this entry'));
  if (!full) return h('div', attributes, about, muted('Reading …'));
  const payload = full.data === null ? null : JSON.stringify(full.data, null, 2);
  return h('div', attributes, about, h('pre', { tabindex: 0 }, full.message),
    payload && [muted('Payload'), h('pre', { tabindex: 0 }, payload)]);
}

function originOf({ timestamp_original: stamp, source, suspect }) {
  const place = source === 'both' ? 'engine and files' : source;
  return [soft(`the node wrote ${stamp}; read from ${place}`),
    suspect && h('span', { class: 'warn' }, 'may not be the node’s own line')];
}

async function openEntry(id) {
  const at = tail.entries.findIndex((entry) => entry.id === id);
  tail.open = id;
  if (at < 0) return;
  if (tail.following) tail.following = false;
  schedule();
  const list = find('.log');
  const [top, height] = [at * rowHeight(list), rowHeight(list) + DETAIL_REM * 16];
  if (!tail.aim && list) paintLog(Math.max(list.scrollTop, Math.min(top, top + height - list.clientHeight)));
  const { timestamp } = tail.entries[at];
  const found = await ask(`api/logs?limit=1000&since=${timestamp}&until=${after(timestamp, 1)}`).catch(() =>
    ({ logs: [] }));
  if (tail.open !== id) return;
  tail.full = found.logs.find((entry) => entry.id === id) ?? null;
  paintLog(find('.log')?.scrollTop);
}

export function scrolled(list) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 4;
  const isPast = /[?&](until|at)=/.test(location.hash);
  if (!atEnd && tail.following && list.scrollTop < list.dataset.before) tail.following = false;
  else if (atEnd && !tail.waiting && !isPast && !tail.open) tail.following = true;
  list.dataset.before = list.scrollTop;
  paintLog(list.scrollTop);
  if (list.scrollTop < 300 && tail.entries.length) readOlder();
  schedule();
}

export const LOG_ACTIONS = {
  pause: () => { tail.following = false; schedule(); },
  follow: () => {
    const query = readRoute().query;
    tail.open = null;
    if (query.has('until') || query.has('at')) for (const name of ['until', 'at', 'entry']) query.delete(name);
    else if (tail.waiting) tail.key = null;
    tail.following = true;
    go('logs', query);
    schedule();
    paintLog();
  },
  later: async () => {
    const query = readRoute().query;
    const last = tail.entries.at(-1)?.timestamp ?? query.get('at') ?? query.get('until');
    for (let ms = 900000, from = after(last, 1000); Date.parse(from) < now(); ms *= 4) {
      const until = after(from, ms);
      const asked = new URLSearchParams([...tail.filters, ['since', from], ['until', until], ['limit', 1]]);
      if ((await ask(`api/logs?${asked}`).catch(() => ({ logs: [] }))).logs.length) {
        for (const name of ['at', 'entry']) query.delete(name);
        query.set('until', after(until, 60000).slice(0, 16));
        return go('logs', query);
      }
    }
    return LOG_ACTIONS.follow();
  },
  expand: ({ dataset: { id } }) => {
    if (tail.open !== id) return openEntry(id);
    tail.open = null;
    return paintLog(find('.log').scrollTop);
  },
};

/** The place of the log's chart under the cursor, as a time in the address. */
export function openPlace(drawing) {
  const cell = drawing.dataset.chart === 'density'
    && cellsOf(state.boxes.get('api/logs/chart?span=24h').data)[Number(find('.cursor', drawing).dataset.at)];
  if (!cell) return;
  const query = readRoute().query;
  query.set('until', after(cell.at, 1800000).slice(0, 16));
  go('logs', query);
}
