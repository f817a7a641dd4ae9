/* counter: counts in a file. The position of the descriptor, the count in memory and the lines of the file agree at any
 * instant. A rollback leaves the file as it is: the lines after the position are then written again with the same text.
 * argv[1] = the file.
 */
#include "victim.h"

enum { LINE = 9 };

static void check(int fd, long count) {
    char text[LINE + 1], have[LINE];
    long position = lseek(fd, 0, SEEK_CUR), size = lseek(fd, 0, SEEK_END);
    lseek(fd, position, SEEK_SET);
    if (position != count * LINE)
        wrong("position %ld, count %ld", position, count);
    if (size < position || size % LINE)
        wrong("the file has %ld bytes at position %ld", size, position);
    for (long i = 0; i < size / LINE; i++) {
        snprintf(text, sizeof text, "%08ld\n", i);
        if (pread(fd, have, LINE, i * LINE) != LINE || memcmp(text, have, LINE) != 0)
            wrong("line %ld of the file is not its number", i);
    }
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: counter FILE");
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0, argv[1]);
    for (long count = 0;;) {
        char text[LINE + 1];
        snprintf(text, sizeof text, "%08ld\n", count);
        if (write(fd, text, LINE) != LINE)
            wrong("short write");
        if (++count == 10)
            ready();
        if (count >= 10 && asked(1)) {
            check(fd, count);
            answer();
        }
    }
}
