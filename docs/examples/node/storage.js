// Keeps a counter: every call adds one, and its answer is the number.
const { serve } = require("kvmserverguest");

let count = 0;
serve(() => String(++count)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
