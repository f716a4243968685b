/* A web server of one file, so that the image is one file. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int signal) { (void)signal; _exit(0); }

int main(void) {
	const char *port = getenv("PORT");
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 80)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	signal(SIGTERM, stop);
	signal(SIGPIPE, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) {
		perror("listen");
		return 1;
	}
	for (;;) {
		char request[4096];
		const char *answer = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nHello, tiny\n";
		int client = accept(listener, NULL, NULL);
		if (client < 0) continue;
		if (read(client, request, sizeof request) > 0 && write(client, answer, strlen(answer)) < 0) perror("write");
		shutdown(client, SHUT_WR);
		while (read(client, request, sizeof request) > 0);
		close(client);
	}
}
