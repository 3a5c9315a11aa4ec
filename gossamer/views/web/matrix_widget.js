// The matrix view as a notebook widget.
import { render } from "./matrix.js";

export default { render };
