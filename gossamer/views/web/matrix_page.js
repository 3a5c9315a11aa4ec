// The matrix view in an exported page.
import { start } from "./host.js";
import { render } from "./matrix.js";

start(render);
