// Answers one request on standard input and output, for process_per_request: what a Deno process costs per request.
const buffer = new Uint8Array(65536);
let head = "";
while (!head.includes("\r\n\r\n")) {
  const length = await Deno.stdin.read(buffer);
  if (length === null) Deno.exit(0);
  head += new TextDecoder().decode(buffer.subarray(0, length));
}
await Deno.stdout.write(
  new TextEncoder().encode("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"),
);
