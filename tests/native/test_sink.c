/* test_sink: records, runs, spill and paranoid lists of a sink; the parse of maps; from the outside where it can be. */
#include "check.h"
#include "sink.h"
#include <errno.h>

static void put_page(ckpt_sink *sink, uint64_t page, uint8_t value) {
    size_t got;
    CHECK_EQ(sink_run(sink, page, 1, CKPT_DATA), 0);
    uint8_t *room = sink_room(sink, CKPT_PAGE, &got);
    CHECK_EQ(got, CKPT_PAGE);
    memset(room, value, CKPT_PAGE);
    CHECK_EQ(sink_filled(sink, CKPT_PAGE), 0);
}

static void records(ckpt_sink *sink) {
    CHECK_EQ(sink_record(sink, CKPT_R_REGS, 1, 2, 3, 4, "abcde", 5), 0);
    char *room = sink_record_begin(sink, CKPT_R_FDINFO, 7, 8, 9, 10, 8 << 20); /* more than the reserve: must grow */
    CHECK(room);
    memset(room, 'x', 8 << 20);
    sink_record_commit(sink, 3);
    const uint8_t *bytes;
    size_t size = ckpt_sink_records(sink, &bytes);
    CHECK_EQ(size, sizeof(struct ckpt_record) * 2 + 8 + 8);
    const struct ckpt_record *first = (const void *)bytes;
    const struct ckpt_record *second = (const void *)(bytes + sizeof *first + 8);
    CHECK(first->kind == CKPT_R_REGS && first->size == 5 && !memcmp(first + 1, "abcde\0\0\0", 8));
    CHECK(second->pid == 7 && second->tid == 8 && second->fd == 9 && second->index == 10 && second->size == 3);
    CHECK(!memcmp(second + 1, "xxx\0\0\0\0\0", 8));
}

static void runs_and_spill(ckpt_sink *sink) {
    const struct ckpt_space_runs *spaces;
    uint64_t in_memory, total;
    uint8_t page[CKPT_PAGE];
    CHECK_EQ(sink_space(sink, 0), 0);
    for (int i = 0; i < 6; i++) /* the buffer holds 4 */
        put_page(sink, 100 + (uint64_t)i, (uint8_t)i);
    CHECK_EQ(sink_run(sink, 106, 2, CKPT_ZERO), 0);
    CHECK_EQ(sink_run(sink, 108, 1, CKPT_ZERO), 0);
    CHECK_EQ(sink_run(sink, 110, 1, CKPT_ZERO), 0);
    CHECK_EQ(sink_paranoid(sink), 0);
    put_page(sink, 200, 77);
    CHECK_EQ(sink_space(sink, 1000000), 0);
    put_page(sink, 0, 88);
    CHECK_EQ(ckpt_sink_spaces(sink, &spaces), 2);
    CHECK(spaces[0].run_count == 3 && spaces[0].runs[0].page == 100 && spaces[0].runs[0].count == 6);
    CHECK(spaces[0].runs[1].count == 3 && spaces[0].runs[1].content == CKPT_ZERO && spaces[0].runs[2].page == 110);
    CHECK(spaces[0].data_pages == 6 && spaces[0].data_offset == 0);
    CHECK(spaces[0].paranoid_count == 1 && spaces[0].paranoid_runs[0].page == 200 && spaces[0].paranoid_offset == 6 * CKPT_PAGE);
    CHECK(spaces[1].space == 1000000 && spaces[1].run_count == 1 && spaces[1].data_offset == 7 * CKPT_PAGE && !spaces[1].paranoid_runs);
    const uint8_t *data = ckpt_sink_data(sink, &in_memory, &total);
    CHECK(in_memory == 4 * CKPT_PAGE && total == 8 * CKPT_PAGE && data[3 * CKPT_PAGE] == 3);
    CHECK_EQ(ckpt_sink_read_spill(sink, 5 * CKPT_PAGE, page, CKPT_PAGE), 0);
    CHECK(page[0] == 5 && page[CKPT_PAGE - 1] == 5);
    CHECK_EQ(ckpt_sink_read_spill(sink, 7 * CKPT_PAGE, page, CKPT_PAGE), 0);
    CHECK_EQ(page[9], 88);
    CHECK_EQ(ckpt_sink_read_spill(sink, 8 * CKPT_PAGE, page, CKPT_PAGE), -EINVAL);
    CHECK_EQ(ckpt_sink_read_spill(sink, 0, page, CKPT_PAGE), -EINVAL);
}

static void parse_of_maps(void) {
    static const char text[] = "00400000-00401000 r-xp 00001000 fd:01 123   /bin/a b\n"
                               "7f0000000000-7f0000002000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n"
                               "7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]\n"
                               "7ffe00000000-7ffe00001000 rw-p 00000000 00:00 0 \n";
    struct map_line lines[4];
    CHECK_EQ(maps_parse_into(text, sizeof text - 1, lines, 4), 4);
    CHECK(lines[0].start == 0x400000 && lines[0].end == 0x401000 && lines[0].offset == 0x1000 && lines[0].ino == 123);
    CHECK(lines[0].dev_major == 0xfd && !strcmp(lines[0].path, "/bin/a b") && maps_kind(&lines[0]) == CKPT_RANGE_FILE_PRIVATE);
    CHECK(maps_kind(&lines[1]) == CKPT_RANGE_SKIP && maps_kind(&lines[2]) == CKPT_RANGE_SKIP && maps_kind(&lines[3]) == CKPT_RANGE_ANON);
    CHECK_EQ(maps_parse_into(text, sizeof text - 1, lines, 3), -ENOSPC);
    for (size_t cut = 1; cut < sizeof text - 1; cut++) { /* a cut text is refused, unless it is cut between lines */
        char *copy = memcpy(malloc(cut), text, cut);
        ssize_t got = maps_parse_into(copy, cut, lines, 4);
        CHECK(text[cut - 1] == '\n' ? got > 0 : got == -EBADMSG);
        free(copy);
    }
}

/* For work on a running target: the same, but what does not fit has nowhere to go. */
static void without_spill(void) {
    ckpt_sink *sink;
    size_t got;
    CHECK_EQ(ckpt_sink_new_running(4 * CKPT_PAGE, &sink), 0);
    records(sink);
    CHECK_EQ(sink_space(sink, 0), 0);
    uint8_t *room = sink_room(sink, 5 * CKPT_PAGE, &got);
    CHECK(room && got == 4 * CKPT_PAGE);
    memset(room, 'p', got);
    CHECK_EQ(sink_filled(sink, got), 0);
    CHECK_EQ(sink_free_bytes(sink), 0);
    CHECK(sink_room(sink, CKPT_PAGE, &got) == NULL);
    ckpt_sink_reset(sink);
    CHECK_EQ(sink_free_bytes(sink), 4 * CKPT_PAGE);
    ckpt_sink_free(sink);
}

int main(void) {
    ckpt_sink *sink;
    CHECK_EQ(ckpt_sink_new(4 * CKPT_PAGE, "/tmp", &sink), 0);
    for (int again = 0; again < 2; again++) {
        records(sink);
        runs_and_spill(sink);
        ckpt_sink_reset(sink);
    }
    ckpt_sink_free(sink);
    CHECK_EQ(ckpt_sink_new(1, "/nowhere", &sink), -ENOENT);
    without_spill();
    parse_of_maps();
    puts("PASS");
    return 0;
}
