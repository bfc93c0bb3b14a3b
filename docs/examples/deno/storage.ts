// Keeps a counter: every call adds one, and its answer is the number.
import { serve } from "../../../guestlib/deno/kvmserverguest.ts";

let count = 0;
await serve(() => String(++count));
