#ifndef ST_MAP_H
#define ST_MAP_H
#include "pages.h"
struct st_map {
    struct st_extent *extents;
    size_t count, room;
};
#endif
