// Answers how long a hot loop takes, in milliseconds: deno run --allow-all speed.ts PORT (or `once`)
function work(): number {
  let state = 1;
  for (let turn = 0; turn < 50_000_000; turn++) state = (state * 1103515245 + 12345) & 0x7fffffff;
  return state;
}

function measure(): string {
  const start = performance.now();
  const result = work();
  return `${(performance.now() - start).toFixed(1)} ${result}`;
}

if (Deno.args[0] === "once") {
  measure();
  console.log(measure());
} else {
  Deno.serve({ port: Number(Deno.args[0]) }, () => new Response(measure()));
}
