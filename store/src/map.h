#ifndef ST_MAP_H
#define ST_MAP_H
#include "pages.h"
struct st_map {
    struct st_extent *extents;
    size_t count, room;
};
/* A map with room for so many extents: one whose size is known beforehand need not be moved as it grows. */
int st_map_new_room(size_t room, st_map **ret_map);
#endif
