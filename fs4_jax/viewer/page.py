"""The viewer's page: HTML, style and script in one; NONCE and TOKEN are put in when it is served.

The server gives ids as bytes; colours, names and merges are the page's: a change is seen at once.
"""

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#667080;--line:#e2e5ea;
 --accent:#2563c9;--soft:#e6eefb;--warn:#8f4a00;--warn-bg:#fff0d9}
@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#191d23;--ink:#e8ebef;--muted:#98a2b0;
 --line:#2b313a;--accent:#6ea3ff;--soft:#1d2b45;--warn:#ffc27a;--warn-bg:#3a2a12}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;height:100vh;display:grid;grid-template:auto minmax(0,1fr)/160px minmax(0,1fr) 300px;
 background:var(--bg);color:var(--ink);
 font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{grid-column:1/4;display:flex;gap:8px 20px;align-items:center;flex-wrap:wrap;
 padding:10px 18px;border-bottom:1px solid var(--line);background:var(--card)}
h1{font-size:16px;margin:0;margin-right:auto}h2{font-size:14px;margin:0}
button,input{font:inherit;color:inherit}
button{border:1px solid var(--line);background:var(--card);border-radius:7px;padding:4px 11px;
 cursor:pointer}button:hover{border-color:var(--accent)}button:disabled{opacity:.4;cursor:default}
.views{display:flex}.views button{border-radius:0;margin-left:-1px}
.views button:first-child{border-radius:7px 0 0 7px}.views button:last-child{
 border-radius:0 7px 7px 0}
button[aria-pressed=true]{background:var(--soft);border-color:var(--accent);position:relative}
label{display:flex;gap:6px;align-items:center;color:var(--muted)}
#films{overflow-y:auto;padding:10px;display:flex;flex-direction:column;gap:8px}
#films button{padding:4px;display:block;width:100%;flex:none;overflow:hidden}
#films img{display:block;width:100%;aspect-ratio:4/3;object-fit:contain;background:var(--bg)}
#films span{display:block;font-size:11.5px;color:var(--muted);overflow:hidden;white-space:nowrap;
 text-overflow:ellipsis}
main{padding:14px;display:flex;flex-direction:column;min-height:0;align-items:center;gap:8px}
#stage{flex:1;min-height:0;width:100%;position:relative}
canvas{position:absolute;inset:0;width:100%;height:100%;object-fit:contain}
#caption{min-height:1.5em;color:var(--muted)}
body[data-loading] #caption::after{content:": finding its clusters \\2026"}
aside{overflow-y:auto;padding:14px 16px;border-left:1px solid var(--line);background:var(--card)}
.head{display:flex;justify-content:space-between;align-items:center}
#hint,#meaning{color:var(--muted);font-size:12.5px;margin:4px 0 10px}
ul{list-style:none;margin:0;padding:0}
li{display:grid;grid-template-columns:16px minmax(0,1fr) auto;gap:8px;align-items:center;
 padding:5px 6px;border-radius:7px;border:1px solid transparent;cursor:grab;touch-action:none;
 user-select:none}
li:hover,li.lit{background:var(--soft)}li.onto{border-color:var(--accent);background:var(--soft)}
li.dragged{opacity:.5}li b{font-weight:500;overflow:hidden;text-overflow:ellipsis}
li small{color:var(--muted)}.dot{width:16px;height:16px;border-radius:5px}
.parts{grid-column:2/4;display:flex;flex-wrap:wrap;gap:4px}
.parts button{font-size:11.5px;padding:0 7px}
li input{grid-column:2/4;width:100%;border:1px solid var(--accent);border-radius:5px;
 background:var(--bg);padding:1px 6px}
#error{grid-column:1/4;background:var(--warn-bg);color:var(--warn);padding:8px 18px;
 white-space:pre-wrap}
@media(max-width:760px){body{grid-template:auto 1fr auto/1fr;height:auto}header{grid-column:1}
 #films{flex-direction:row;overflow-x:auto}#films button{width:90px}#stage{min-height:55vh}
 aside{border:0}}
"""

_BODY = """
<header><h1 id="title">fs4_jax</h1>
<div class="views" id="views">
<button data-view="photo" title="key 1">photograph</button>
<button data-view="truth" title="key 2">truth</button>
<button data-view="clusters" title="key 3">prediction</button>
<button data-view="overlay" title="key 4">overlay</button></div>
<label>colours <input type="range" id="alpha" min="10" max="90" value="50"></label>
<div class="views"><button id="previous" title="left arrow">previous</button>
<button id="next" title="right arrow">next</button></div>
<div id="error" role="alert" hidden></div></header>
<nav id="films" aria-label="images"></nav>
<main><div id="stage"><canvas id="canvas"></canvas></div><div id="caption"></div></main>
<aside><div class="head"><h2>Clusters</h2><button id="undo" disabled>undo</button></div>
<p id="hint">Double-click a name to change it. Drag a cluster onto another to merge them.</p>
<ul id="list"></ul><p id="meaning"></p></aside>
"""

_SCRIPT = """
'use strict';
const $ = id => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
let state, told, undone = [], at = -1, view = 'overlay', lit = null, drag = null;
let shown = {photo: null, truth: null, clusters: null, height: 0, width: 0};

// ---- server ------------------------------------------------------------------------------------
async function get(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({error: answer.statusText}));
    throw Object.assign(new Error(content.error), {status: answer.status, content});
  }
  return answer;
}
function complain(error) {
  $('error').hidden = !error;
  $('error').textContent = error ? error.message : '';
}
async function ids(kind, i) {
  const answer = await get(`/${kind}/${i}`);
  const [height, width] = answer.headers.get('X-Size').split(' ').map(Number);
  return {pixels: new Uint8Array(await answer.arrayBuffer()), height, width};
}
async function save(names, merged, remember = true) {
  const before = {names: told.names, merged: told.merged};
  try {
    const answer = await get('/api/names', {
      method: 'POST', headers: {'Content-Type': 'application/json', 'X-Token': 'TOKEN'},
      body: JSON.stringify({names, merged, revision: told.revision})});
    told = await answer.json();
    if (remember) undone.push(before);
    complain(null);
  } catch (error) {
    if (error.status === 409) { told = error.content; undone = []; }
    complain(error);
  }
  listClusters();
  paint();
}

// ---- clusters ----------------------------------------------------------------------------------
const root = k => told.merged[k] ?? k;
const nameOf = k => told.names[k] ?? state.clusters[k].name;
const partsOf = k => state.clusters.map((_, i) => i).filter(i => i !== k && root(i) === k);
function shares() {
  const counts = new Array(state.clusters.length).fill(0);
  if (shown.clusters) for (const id of shown.clusters.pixels) counts[root(id)] += 1;
  return counts.map(n => n / (shown.clusters ? shown.clusters.pixels.length : 1));
}
function listClusters() {
  const share = shares();
  $('undo').disabled = !undone.length;
  $('list').replaceChildren(...state.clusters.map((cluster, k) => k).filter(k => root(k) === k)
    .map(k => {
      const dot = make('span', {className: 'dot'});
      dot.style.background = css(state.clusters[k].colour);
      const percent = share[k] ? `${(100 * share[k]).toFixed(share[k] < .1 ? 1 : 0)} %` : '';
      const row = make('li', {tabIndex: 0, title: `cluster ${k}`}, dot,
        make('b', {textContent: nameOf(k)}), make('small', {textContent: percent}));
      row.dataset.cluster = k;
      const parts = partsOf(k);
      if (parts.length) row.append(make('div', {className: 'parts'}, ...parts.map(part => {
        const undo = make('button', {textContent: `${nameOf(part)} ×`,
                                     title: 'take it out again'});
        undo.onclick = () => {
          const {[part]: _, ...merged} = told.merged;
          save(told.names, merged);
        };
        return undo;
      })));
      row.onpointerenter = () => light(k);
      row.onpointerleave = () => light(null);
      row.ondblclick = () => rename(row, k);
      row.onkeydown = event => { if (event.key === 'Enter') rename(row, k); };
      row.onpointerdown = event => grab(event, row, k);
      return row;
    }));
}
function rename(row, k) {
  if (row.querySelector('input')) return;
  const input = make('input', {value: nameOf(k), maxLength: 80, ariaLabel: 'name'});
  let over = false;
  const end = keep => {
    if (over) return;
    over = true;
    const name = input.value.trim(), {[k]: _, ...names} = told.names;
    if (!keep || name === nameOf(k)) return listClusters();
    save(name && name !== state.clusters[k].name ? {...names, [k]: name} : names, told.merged);
  };
  input.onkeydown = event => {
    event.stopPropagation();
    if (event.key === 'Enter') end(true);
    if (event.key === 'Escape') end(false);
  };
  input.onblur = () => end(true);
  row.querySelector('b').replaceWith(input);
  row.querySelector('small').remove();
  input.select();
  input.focus();
}
function grab(event, row, k) {
  if (event.button || event.target.closest('input, button')) return;
  drag = {k, row, onto: null, x: event.clientX, y: event.clientY, far: false};
}
document.addEventListener('pointermove', event => {
  if (!drag) return;
  drag.far ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 5;
  if (!drag.far) return;
  const target = document.elementFromPoint(event.clientX, event.clientY)?.closest('li');
  drag.onto?.classList.remove('onto');
  drag.onto = target && target !== drag.row ? target : null;
  drag.onto?.classList.add('onto');
  drag.row.classList.add('dragged');
});
document.addEventListener('pointercancel', () => { drag = null; listClusters(); });
document.addEventListener('pointerup', () => {
  if (!drag) return;
  const {k, onto, row} = drag;
  drag = null;
  row.classList.remove('dragged');
  if (!onto) return;
  onto.classList.remove('onto');
  const into = Number(onto.dataset.cluster), merged = {...told.merged, [k]: into};
  for (const part of partsOf(k)) merged[part] = into;
  save(told.names, merged);
});
$('undo').onclick = () => {
  const before = undone.pop();
  if (before) save(before.names, before.merged, false);
};

// ---- pictures ----------------------------------------------------------------------------------
const css = colour => `rgb(${colour.join(',')})`;
function light(k) {
  if (lit === k) return;
  lit = k;
  for (const row of $('list').children)
    row.classList.toggle('lit', Number(row.dataset.cluster) === k);
  paint();
}
function paint() {
  const canvas = $('canvas'), {height, width, photo} = shown;
  if (!height) return;
  if (canvas.width !== width || canvas.height !== height)
    Object.assign(canvas, {width, height});
  const context = canvas.getContext('2d');
  if (photo && (view === 'photo' || view === 'overlay')) {
    context.drawImage(photo, 0, 0, width, height);
    if (view === 'photo' && lit === null) return;
  } else context.clearRect(0, 0, width, height);
  const from = view === 'truth' ? shown.truth : shown.clusters;
  if (!from) return;
  const layer = new OffscreenCanvas(width, height), inner = layer.getContext('2d');
  inner.putImageData(new ImageData(coloured(from.pixels), width, height), 0, 0);
  context.drawImage(layer, 0, 0);
}
function coloured(pixels) {
  const truth = view === 'truth', table = new Uint32Array(256);
  const alpha = view === 'overlay' ? 2.55 * $('alpha').value : view === 'photo' ? 0 : 255;
  const bytes = new Uint8ClampedArray(table.buffer);
  bytes.set([52, 54, 60, truth ? 255 : 0], 4 * 255);
  (truth ? state.classes : state.clusters).forEach((_, id) => {
    const own = truth ? id : root(id);
    const faded = !truth && lit !== null && own !== lit;
    const strong = !truth && own === lit && view === 'photo' ? 128 : alpha;
    bytes.set([...(truth ? state.classes : state.clusters)[own].colour,
               faded ? strong * .25 : strong], 4 * id);
  });
  const out = new Uint32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) out[i] = table[pixels[i]];
  return new Uint8ClampedArray(out.buffer);
}
function under(event) {
  const {height, width} = shown, box = $('canvas').getBoundingClientRect();
  const scale = Math.min(box.width / width, box.height / height);
  const x = Math.floor((event.clientX - box.left - (box.width - scale * width) / 2) / scale);
  const y = Math.floor((event.clientY - box.top - (box.height - scale * height) / 2) / scale);
  return x < 0 || y < 0 || x >= width || y >= height ? null : y * width + x;
}
$('canvas').onpointermove = event => {
  const place = shown.clusters ? under(event) : null;
  if (place === null) { caption(); return light(null); }
  const k = root(shown.clusters.pixels[place]);
  const id = shown.truth?.pixels[place];
  const truth = shown.truth ? `, truth: ${state.classes[id]?.name ?? 'not labelled'}` : '';
  caption(`${nameOf(k)}${truth}`);
  if (view !== 'truth') light(k);
};
$('canvas').onpointerleave = () => { caption(); light(null); };
$('canvas').ondblclick = event => {
  const place = shown.clusters ? under(event) : null;
  if (place === null) return;
  const k = root(shown.clusters.pixels[place]);
  const row = [...$('list').children].find(row => Number(row.dataset.cluster) === k);
  row.scrollIntoView({block: 'nearest'});
  rename(row, k);
};
const caption = text => {
  $('caption').textContent = text ?? `${at + 1} of ${state.images.length}: ${state.images[at]}`;
};
function look(name) {
  view = name;
  for (const button of $('views').children)
    button.setAttribute('aria-pressed', button.dataset.view === name);
  paint();
}
async function open(i) {
  if (i < 0 || i >= state.images.length || i === at) return;
  at = i;
  $('previous').disabled = i === 0;
  $('next').disabled = i === state.images.length - 1;
  [...$('films').children].forEach((film, j) => film.setAttribute('aria-pressed', j === i));
  $('films').children[i].scrollIntoView({block: 'nearest', inline: 'nearest'});
  caption();
  document.body.dataset.loading = i;
  try {
    const photo = new Image();
    photo.src = `/photo/${i}`;
    const decoded = photo.decode().catch(() => {
      throw new Error(`${state.images[i]} can not be shown`);
    });
    decoded.then(() => {          // the first ids come late: their program is compiled
      if (shown.height || i !== at) return;
      shown = {...shown, photo, height: photo.naturalHeight, width: photo.naturalWidth};
      paint();
    }, () => {});                 // the ids' own error says more
    const wanted = [ids('clusters', i), state.truth ? ids('truth', i) : null];
    const [clusters, truth] = await Promise.all(wanted);
    await decoded;
    if (i !== at) return;
    shown = {photo, truth, clusters, height: clusters.height, width: clusters.width};
    complain(null);
  } catch (error) {
    if (i !== at) return;
    shown = {photo: null, truth: null, clusters: null, height: 0, width: 0};
    $('canvas').width = $('canvas').height = 1;
    complain(error);
  }
  listClusters();
  paint();
  delete document.body.dataset.loading;
  if (i + 1 < state.images.length) ids('clusters', i + 1).catch(() => {});
}
for (const button of $('views').children) button.onclick = () => look(button.dataset.view);
$('alpha').oninput = paint;
$('previous').onclick = () => open(at - 1);
$('next').onclick = () => open(at + 1);
document.addEventListener('keydown', event => {
  if (event.target.matches('input')) return;
  if (event.key === 'ArrowLeft') open(at - 1);
  if (event.key === 'ArrowRight') open(at + 1);
  const chosen = $('views').children[Number(event.key) - 1];
  if (chosen && !chosen.hidden) chosen.click();
});
(async () => {
  try {
    state = await (await get('/api/state')).json();
    told = await (await get('/api/names')).json();
  } catch (error) { return complain(error); }
  document.title = $('title').textContent = state.title;
  $('meaning').textContent = `Before names and merges: ${state.meaning}.`;
  $('views').children[1].hidden = !state.truth;
  $('films').replaceChildren(...state.images.map((name, i) => {
    const film = make('button', {title: name, onclick: () => open(i)},
      make('img', {alt: '', loading: 'lazy', src: `/thumb/${i}`}),
      make('span', {textContent: name}));
    return film;
  }));
  listClusters();
  look(view);
  open(0);
})();
"""

PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>fs4_jax</title>
<style nonce="NONCE">{_STYLE}</style>
</head>
<body>
{_BODY}
<script nonce="NONCE">{_SCRIPT}</script>
</body>
</html>
"""
