/* Makes distinct entries of sets: so many connections, and so many files. It
 * prints how many, and how much processor time they took. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static long long spent(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000LL + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000LL;
}

int main(int argc, char **argv)
{
	int connections = atoi(argv[1]), files = atoi(argv[2]), made = 0;
	struct sockaddr_in to = { .sin_family = AF_INET };
	char name[64];

	if (getchar() == EOF) /* its barrier */
		return 0;
	long long before = spent();
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	for (int i = 0; i < connections; i++) {
		to.sin_addr.s_addr = htonl(0x7f000001 + i); /* all of 127/8 is this machine */
		to.sin_port = htons(1000);
		made += !connect(fd, (struct sockaddr *)&to, sizeof(to));
	}
	for (int i = 0; i < files; i++) {
		snprintf(name, sizeof(name), "/tmp/%d", i);
		int f = open(name, O_CREAT | O_WRONLY | O_EXCL, 0600);
		made += f >= 0;
		close(f);
	}
	printf("%d %lld\n", made, spent() - before);
	fflush(stdout);
	getchar(); /* its end */
	return 0;
}
