/* Makes files one after the other, of which each may have the inode number of
 * the one before. It waits for a byte, as target.c does. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	char c, path[64];

	if (read(0, &c, 1) != 1)
		return 1;
	for (int i = 0; i < 4; i++) {
		sprintf(path, "/tmp/secret-%d", i);
		int fd = open(path, O_CREAT | O_RDWR, 0600);
		if (fd < 0 || write(fd, "hello", 5) != 5)
			return 2;
		close(fd);
		unlink(path);
	}
	return 0;
}
