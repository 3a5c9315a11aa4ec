// The graph view in an exported page.
import { render } from "./graph.js";
import { start } from "./host.js";

start(render);
