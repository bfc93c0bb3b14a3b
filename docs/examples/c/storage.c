/* Keeps a counter: every call adds one, and its answer is the number. */
#include <kvmserverguest.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
	unsigned long count = 0;
	ssize_t result = 0;
	if (!kvmserverguest_available()) {
		fputs("not inside kvmserver\n", stderr);
		return 1;
	}
	for (;;) {
		void *buffer;
		ssize_t length = kvmserverguest_storage_wait_paused(&buffer, result);
		if (length < 0) {
			fprintf(stderr, "cannot wait for calls: %s\n", strerror((int)-length));
			return 1;
		}
		result = snprintf(buffer, (size_t)length, "%lu", ++count);
	}
}
