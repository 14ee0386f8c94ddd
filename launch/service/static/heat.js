// A picture's artifact map (gray, 0 sound .. 255 surely artifact) and a threshold in; what lies at
// or above it, in the colours of core/heatmap.py, on a canvas out.

const COLOURS = [[0, 0, 5], [87, 15, 110], [186, 54, 84], [250, 143, 10], [255, 255, 163]];
const OPACITY = 0.75;
const LOWEST = 0.3; // of what is shown at all, so that a low threshold shows where it begins

// The levels of a map's file, at most `side` wide and high.
export async function levels(blob, side) {
  const picture = await createImageBitmap(blob);
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  const width = Math.max(1, Math.round(picture.width * scale));
  const height = Math.max(1, Math.round(picture.height * scale));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, width, height);
  picture.close();
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, data: Uint8Array.from({ length: width * height }, (_, i) => data[4 * i]) };
}

// Null clears it.
export function paint(canvas, map, threshold) {
  canvas.width = map?.width ?? 1; // which also clears it
  canvas.height = map?.height ?? 1;
  if (!map) return;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(map.width, map.height);
  const table = colours(threshold);
  map.data.forEach((level, i) => picture.data.set(table[level], 4 * i));
  context.putImageData(picture, 0, 0);
}

function colours(threshold) {
  return Array.from({ length: 256 }, (_, level) => {
    const value = level / 255;
    if (value < threshold || !level) return [0, 0, 0, 0];
    const place = value * (COLOURS.length - 1), low = Math.min(COLOURS.length - 2, Math.floor(place));
    const mixed = [0, 1, 2].map((i) => {
      return COLOURS[low][i] + (place - low) * (COLOURS[low + 1][i] - COLOURS[low][i]);
    });
    return [...mixed, 255 * (LOWEST + (OPACITY - LOWEST) * value)];
  });
}
