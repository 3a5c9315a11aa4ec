// The graph view as a notebook widget.
import { render } from "./graph.js";

export default { render };
