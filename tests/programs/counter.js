// A counter server on Node's http module: node counter.js PORT
// `/timer` answers after a timer, `/file` after reading this file in the thread pool, `/hash` after work in it.
const http = require("node:http");
const fs = require("node:fs");
const crypto = require("node:crypto");

let count = 0;

function answer(response, text) {
  response.setHeader("Content-Type", "text/plain");
  response.end(`${text}\n`);
}

http
  .createServer((request, response) => {
    const number = ++count;
    if (request.url === "/timer") {
      setTimeout(() => answer(response, number), 5);
    } else if (request.url === "/file") {
      fs.readFile(__filename, (error, data) => answer(response, error ? error.code : `${number} ${data.length > 100}`));
    } else if (request.url === "/hash") {
      crypto.pbkdf2("password", "salt", 1000, 32, "sha256", (error, key) =>
        answer(response, error ? error.code : `${number} ${key.length}`));
    } else {
      answer(response, number);
    }
  })
  .listen(Number(process.argv[2]));
