/* The page hash: HighwayHash-128 keyed by the store's secret, so that nobody who chooses page contents can make two pages
 * meet. The library picks the best instructions of this processor; its result is the same on all. */
#include "highwayhash/highwayhash_target.h"
#include "highwayhash/instruction_sets.h"

#include <string.h>

#include "pages.h"

extern "C" void st_hash_page(const uint8_t *key, const uint8_t *page, uint8_t *ret_hash)
{
    using namespace highwayhash;
    HH_ALIGNAS(32) HHKey secret;
    HH_ALIGNAS(32) HHResult128 result;
    memcpy(secret, key, sizeof(secret));
    InstructionSets::Run<HighwayHash>(secret, reinterpret_cast<const char *>(page), ST_PAGE, &result);
    memcpy(ret_hash, result, 16);
}
