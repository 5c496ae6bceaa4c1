"use strict";
// Where units are drawn: columns from left to right, or where it is narrow bands from top to bottom. A block is
// the grid of one column's marks: its place, the size of a cell, and how many cells it is wide and high.

const GAP = 20, HEAD = 38, NARROW = 560, LEAST_WIDTH = 96, LARGEST_CELL = 36, LEAST_CELL = 9;

// Returns the size of the picture, its blocks, and whether marks follow each other downwards or to the right.
function layUnitsOut(columns, width) {
  return width >= NARROW ? columnsIn(columns, width) : bandsIn(columns, width);
}

function grid(column, cell, rows) {
  const across = Math.ceil(column.size / rows);
  return {column, cell, across, down: Math.min(rows, column.size), width: Math.max(across * cell, LEAST_WIDTH)};
}

function columnsIn(columns, width) {
  let blocks;
  const fits = (high, cell) => {
    blocks = columns.map(column => grid(column, cell, Math.max(1, Math.floor(high / cell))));
    return blocks.reduce((sum, block) => sum + block.width + GAP, -GAP) <= width;
  };
  // As low as marks allow that one can still tell apart.
  let found = false;
  for (const [high, least] of [[400, 14], [520, 13], [640, LEAST_CELL]]) {
    for (let cell = LARGEST_CELL; cell >= least && !found; cell--) found = fits(high, cell);
    if (found) break;
  }
  if (!found) fits(480, 12);  // in several lines of columns
  let x = 0, y = HEAD, low = 0;
  const placed = [];
  for (const block of blocks) {
    if (x > 0 && x + block.width > width) [x, y, low] = [0, low + HEAD + GAP, 0];
    if (block.width > width) Object.assign(block, grid(block.column, block.cell,
      Math.ceil(block.column.size / Math.floor(width / block.cell))));
    placed.push({...block, x, y});
    x += block.width + GAP;
    low = Math.max(low, y + block.down * block.cell);
  }
  return {width, height: low + 4, blocks: placed, upright: true};
}

function bandsIn(columns, width) {
  let blocks, height;
  for (let cell = 26; cell >= 10; cell--) {
    const across = Math.max(1, Math.floor(width / cell));
    height = 0;
    blocks = columns.map(column => {
      const block = {column, cell, across, down: Math.ceil(column.size / across), width, x: 0, y: height + HEAD};
      height = block.y + block.down * cell + 12;
      return block;
    });
    if (height <= 700) break;
  }
  return {width, height, blocks, upright: false};
}

// Names of layers differ in the middle, as in h.0.mlp.c_fc: what does not fit is left out between its halves.
function fittedName(name, width) {
  const most = Math.max(6, Math.floor(width / 7)), half = Math.floor((most - 1) / 2);
  return name.length <= most ? name : `${name.slice(0, most - 1 - half)}…${name.slice(-half)}`;
}

// Returns a function that leaves out what all names begin with, whole parts of it alone.
function briefNames(columns) {
  const begun = columns.map(column => column.name.split("."));
  let alike = 0;
  while (columns.length > 1 && begun.every(parts => parts.length > alike + 1 && parts[alike] === begun[0][alike])) alike++;
  // A number alone is no name.
  if (alike > 0 && begun.some(parts => /^\d/.test(parts[alike]))) alike--;
  return name => name.split(".").slice(alike).join(".");
}
