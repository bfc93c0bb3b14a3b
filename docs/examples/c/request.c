/* A server that answers every request with the storage program's next number: request PORT. */
#include <kvmserverguest.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void answer(int client)
{
	char request[4096], number[64] = "count", response[256];
	if (read(client, request, sizeof request) <= 0)
		return;
	const char *status = "200 OK";
	ssize_t result = kvmserverguest_remote_resume(number, sizeof number);
	if (result < 0) {
		status = "503 Service Unavailable";
		result = snprintf(number, sizeof number, "%s", strerror((int)-result));
	}
	int length = snprintf(response, sizeof response, "HTTP/1.1 %s\r\nContent-Length: %zd\r\nConnection: close\r\n\r\n%.*s",
			      status, result, (int)result, number);
	if (write(client, response, (size_t)length) != length)
		perror("write");
}

int main(int argc, char **argv)
{
	if (argc != 2 || !kvmserverguest_available()) {
		fputs(argc != 2 ? "usage: request PORT\n" : "not inside kvmserver\n", stderr);
		return 1;
	}
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
		perror("cannot listen");
		return 1;
	}
	for (;;) {
		int client = accept(listener, NULL, NULL);
		answer(client);
		close(client);
	}
}
