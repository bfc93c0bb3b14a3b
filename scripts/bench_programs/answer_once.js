// Answers one request on standard input and output, for process_per_request: what a Node process costs per request.
let head = "";
process.stdin.on("data", (data) => {
  head += data;
  if (!head.includes("\r\n\r\n")) return;
  process.stdout.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", () => process.exit(0));
});
