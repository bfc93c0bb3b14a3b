/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Answers one request on standard input and output, for process_per_request.
 */
#include "http.h"

int main(void)
{
    static struct connection client = {.fd = 0};
    while (http_serve(&client) == HTTP_WAIT)
        ;
    return 0;
}
