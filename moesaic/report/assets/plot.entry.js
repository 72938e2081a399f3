export { plot, areaY, axisX, axisY, barX, cell, dot, gridX, gridY, lineY, link, pointer, pointerX, raster, ruleX, ruleY, text, tip } from "@observablehq/plot";
