// Figures by name, of a job that goes on: held, added to, and how far they reach.

const MOST = 800; // points of a line, twice as many as the service sends

// Without a prototype: what a figure is called (`constructor`, `__proto__`) is nothing but a name.
export function held(found = {}) {
  return Object.assign(Object.create(null), found);
}

// The values of a step; a line that has grown too long keeps every second point, and the newest.
export function add(curves, { step, ...values }) {
  for (const [name, value] of Object.entries(values)) {
    if (typeof value !== "number") continue;
    const line = (curves[name] ??= []);
    if (line.length && line.at(-1)[0] >= step) continue;
    line.push([step, value]);
    if (line.length > MOST) {
      curves[name] = line.filter((_, i) => i % 2 === 0 || i === line.length - 1);
    }
  }
}

// The lowest and the highest of any number of values: arguments of a call would be too many.
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}
