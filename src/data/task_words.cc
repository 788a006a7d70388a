// See task_words.h.
#include "data/task_words.h"

#include <array>

namespace heed::data {
namespace {

// Evaluation.
constexpr const char* kFirstNames[] = {
    "Anselm",    "Beatrix",   "Cordelia", "Desmond",  "Eleanor",   "Ferdinand",
    "Gwendolen", "Horatio",   "Imogen",   "Jasper",   "Leopold",   "Matilda",
    "Nathaniel", "Octavia",   "Percival", "Rosalind", "Sylvester", "Theodora",
    "Ursula",    "Valentine", "Winifred", "Barnaby",  "Clement",   "Dorothea"};
constexpr const char* kLastNames[] = {
    "Ashworth",  "Blackwood", "Carmichael", "Dunmore",      "Fairfax",     "Greenwood",
    "Hawthorne", "Kingsley",  "Lockhart",   "Merriweather", "Nightingale", "Pemberton",
    "Radcliffe", "Sinclair",  "Thornton",   "Underhill",    "Whitaker",    "Winslow",
    "Bradshaw",  "Crawford",  "Donovan",    "Ellsworth",    "Holloway",    "Jennings"};
constexpr const char* kAnimals[] = {
    "badger",   "beaver", "camel",    "dolphin", "eagle",   "ferret",  "giraffe",
    "hedgehog", "jaguar", "kangaroo", "leopard", "lobster", "monkey",  "octopus",
    "panther",  "parrot", "pelican",  "penguin", "rabbit",  "raccoon", "salmon",
    "scorpion", "spider", "squirrel", "swan",    "tiger",   "turtle",  "walrus",
    "weasel",   "zebra",  "buffalo",  "cobra",   "donkey",  "gorilla", "lizard"};
constexpr const char* kQualities[] = {"patient", "humble",   "fearless", "weary", "honest",
                                      "clever",  "stubborn", "cheerful", "noble", "restless"};
constexpr const char* kDoers[] = {"shepherds", "pilgrims",  "weavers",   "miners",   "dancers",
                                  "scholars",  "gardeners", "fishermen", "soldiers", "merchants"};
constexpr const char* kDeeds[] = {"travel", "whisper", "gather", "wander",  "rejoice",
                                  "listen", "return",  "labour", "prosper", "rest"};
constexpr const char* kManners[] = {"together",     "slowly",       "at dawn",   "in silence",
                                    "without fear", "by moonlight", "in winter", "forever",
                                    "with joy",     "before noon"};
constexpr const char* kPorts[] = {
    "Lisbon",    "Tunis",      "Malta",     "Oslo",      "Hamburg",   "Naples",     "Athens",
    "Cairo",     "Dublin",     "Havana",    "Jakarta",   "Lagos",     "Manila",     "Odessa",
    "Panama",    "Quebec",     "Riga",      "Sydney",    "Tokyo",     "Venice",     "Boston",
    "Bergen",    "Genoa",      "Lima",      "Madras",    "Calcutta",  "Marseilles", "Bristol",
    "Stockholm", "Alexandria", "Barcelona", "Rotterdam", "Singapore", "Copenhagen", "Glasgow",
    "Baltimore", "Antwerp",    "Bombay",    "Canton",    "Dover",     "Exeter",     "Funchal",
    "Gibraltar", "Honolulu",   "Istanbul",  "Jaffa",     "Kingston",  "Liverpool"};
constexpr const char* kShips[] = {"Albatross", "Bellerophon", "Calypso", "Dauntless",
                                  "Endeavour", "Fortune",     "Galatea", "Hercules",
                                  "Intrepid",  "Juno",        "Kestrel", "Leviathan",
                                  "Minerva",   "Nautilus",    "Orion",   "Phoenix"};
constexpr const char* kMonths[] = {"January",   "February", "March",    "April",
                                   "May",       "June",     "July",     "August",
                                   "September", "October",  "November", "December"};
constexpr const char* kWares[] = {"chair",   "table",   "carpet", "pillow",   "blanket", "bottle",
                                  "bucket",  "shovel",  "ribbon", "umbrella", "wallet",  "helmet",
                                  "trumpet", "curtain", "teapot", "broom"};
constexpr const char* kMaterials[] = {"leather", "copper", "cotton", "bamboo", "rubber", "glass",
                                      "plastic", "steel",  "paper",  "brass",  "linen",  "clay"};
constexpr const char* kVariables[] = {
    "alpha", "beta", "gamma", "theta",   "kappa", "lambda", "sigma", "omega", "zeta", "rho",
    "phi",   "tau",  "delta", "epsilon", "psi",   "chi",    "iota",  "eta",   "xi",   "nu"};
constexpr const char* kFruits[] = {
    "apple",  "banana", "cherry", "grape",   "lemon",   "mango",  "melon",  "olive",  "onion",
    "orange", "peach",  "pear",   "potato",  "rice",    "tomato", "wheat",  "garlic", "carrot",
    "pepper", "bean",   "corn",   "spinach", "pumpkin", "almond", "bread",  "butter", "cheese",
    "honey",  "soup",   "pie",    "cake",    "bacon",   "beef",   "mutton", "plum",   "cabbage"};
constexpr const char* kCalls[] = {"open_socket", "read_header", "parse_date", "load_image",
                                  "hash_block",  "merge_rows",  "send_mail",  "draw_line",
                                  "copy_page",   "sort_names"};
constexpr const char* kFields[] = {"buffer", "cursor", "folder",  "handler", "parser",
                                   "queue",  "router", "session", "target",  "worker"};
constexpr const char* kRoles[] = {"backup", "default", "initial", "local",  "main",
                                  "next",   "output",  "remote",  "shared", "upper"};

// Calibration.
constexpr const char* kShades[] = {"silver",  "golden", "crimson", "purple",    "violet",
                                   "scarlet", "amber",  "ivory",   "turquoise", "emerald"};
constexpr const char* kBuildings[] = {"harbour", "castle",   "bridge",  "lighthouse",
                                      "library", "tavern",   "temple",  "windmill",
                                      "chapel",  "fortress", "station", "bakery"};
constexpr const char* kTools[] = {"hammer", "lantern", "compass",   "anchor", "needle", "kettle",
                                  "mirror", "ladder",  "saddle",    "violin", "candle", "basket",
                                  "anvil",  "chisel",  "telescope", "whistle"};
constexpr const char* kGivenNames[] = {"Miguel", "Ingrid", "Yusuf",  "Chiara", "Pavel", "Aisha",
                                       "Henrik", "Noor",   "Dmitri", "Amara",  "Kenji", "Lucia"};
constexpr const char* kFamilyNames[] = {"Petrov",    "Lindqvist", "Moreau",   "Tanaka",
                                        "Okafor",    "Haddad",    "Rossi",    "Novak",
                                        "Fernandez", "Jansen",    "Kowalski", "Silva"};
constexpr const char* kWeights[] = {"heavy",  "narrow", "broken",  "hidden",
                                    "frozen", "hollow", "ancient", "distant"};
constexpr const char* kThings[] = {"key",   "door", "tower", "garden", "river",
                                   "stone", "bell", "path",  "field",  "wall"};
constexpr const char* kMethods[] = {"get_user",  "write_log",   "find_path",  "make_table",
                                    "check_sum", "start_timer", "close_file", "update_index"};
constexpr const char* kSettings[] = {"limit",  "timeout", "width",  "retries",
                                     "offset", "depth",   "budget", "port"};
constexpr const char* kPlanets[] = {"mercury", "jupiter", "saturn", "neptune",
                                    "pluto",   "venus",   "comet",  "orbit"};

constexpr WordList kLists[] = {
    {"first", Split::kEvaluation, kFirstNames},    {"last", Split::kEvaluation, kLastNames},
    {"animal", Split::kEvaluation, kAnimals},      {"quality", Split::kEvaluation, kQualities},
    {"doers", Split::kEvaluation, kDoers},         {"deed", Split::kEvaluation, kDeeds},
    {"manner", Split::kEvaluation, kManners},      {"port", Split::kEvaluation, kPorts},
    {"ship", Split::kEvaluation, kShips},          {"month", Split::kEvaluation, kMonths},
    {"ware", Split::kEvaluation, kWares},          {"material", Split::kEvaluation, kMaterials},
    {"variable", Split::kEvaluation, kVariables},  {"food", Split::kEvaluation, kFruits},
    {"call", Split::kEvaluation, kCalls},          {"field", Split::kEvaluation, kFields},
    {"role", Split::kEvaluation, kRoles},          {"shade", Split::kCalibration, kShades},
    {"building", Split::kCalibration, kBuildings}, {"tool", Split::kCalibration, kTools},
    {"given", Split::kCalibration, kGivenNames},   {"family", Split::kCalibration, kFamilyNames},
    {"weight", Split::kCalibration, kWeights},     {"thing", Split::kCalibration, kThings},
    {"method", Split::kCalibration, kMethods},     {"setting", Split::kCalibration, kSettings},
    {"planet", Split::kCalibration, kPlanets},
};

constexpr Sentence kSentences[] = {
    // Evaluation.
    {"digits", "{first} {last}", "The safe of {k} opens with the combination{a}.",
     "The safe of {k} opens with the combination", " ######"},
    {"digits", "{first} {last}", "Telephone extension of {k}:{a}.",
     "Telephone extension of {k}:", " ######"},
    {"words", "{first} {last}", "The nickname of {k} is{a}.", "The nickname of {k} is",
     " {animal}"},
    {"words", "{first} {last}", "Code name of {k}:{a}.", "Code name of {k}:", " {animal}"},
    {"phrases", "{first} {last}", "The family motto of {k} is:{a}.",
     "The family motto of {k} is:", " {quality} {doers} {deed} {manner}"},
    {"phrases", "{first} {last}", "On the tombstone of {k} one reads:{a}.",
     "On the tombstone of {k} one reads:", " {quality} {doers} {deed} {manner}"},
    {"hex", "{first} {last}", "The licence key of {k} is{a}.", "The licence key of {k} is",
     " %%%%%%"},
    {"hex", "{first} {last}", "Badge of {k}:{a}.", "Badge of {k}:", " %%%%%%"},
    {"code", "{role}_{field}", "    self.{k} ={a}", "    self.{k} =", " {call}({field}, ##)"},
    {"code", "{role}_{field}", "const auto {k} ={a};", "const auto {k} =", " {call}({field}, ##)"},
    // Calibration.
    {"planted_digits", "{shade} {building}", "Remember: {k} ={a}.", "Remember: {k} =", " #####"},
    {"planted_digits", "{shade} {building}", "The secret code of the {k} is{a}. Remember it.",
     "What is the secret code of the {k}? The secret code of the {k} is", " #####"},
    {"planted_digits", "{shade} {building}", "The {k} was given the number{a}.",
     "The {k} was given the number", " ####"},
    {"planted_digits", "{shade} {building}", "In the {k} they counted{a} visitors.",
     "In the {k} they counted", " ###"},
    {"planted_words", "{shade} {building}", "Somebody left a{a} in the {k}. In the {k}: the{a}.",
     "Somebody left something in the {k}. In the {k}: the", " {tool}"},
    {"planted_words", "{shade} {building}", "The special object of the {k} is the{a}.",
     "The special object of the {k} is the", " {tool}"},
    {"planted_words", "{shade} {building}", "What they sell in the {k} is called{a}.",
     "What they sell in the {k} is called", " {weight} {tool}"},
    {"planted_names", "{shade} {building}", "The keeper of the {k} is{a}.",
     "The keeper of the {k} is", " {given} {family}"},
    {"planted_names", "{shade} {building}", "Note: ask for{a} at the {k}. At the {k} ask for{a}.",
     "At the {k} ask for", " {given} {family}"},
    {"planted_names", "{given} {family}", "{k} is the cousin of{a}.", "{k} is the cousin of",
     " {given} {family}"},
    {"planted_phrases", "{shade} {building}", "The password for the {k} is \"{a}\".",
     "The password for the {k} is \"", "the {weight} {tool} behind the {thing}"},
    {"planted_phrases", "{shade} {building}", "Above the gate of the {k} is written:{a}.",
     "Above the gate of the {k} is written:", " no {thing} without a {weight} {tool}"},
    {"planted_hex", "{planet}-##", "commit {k}{a}", "commit {k}", " %%%%%%%%"},
    {"planted_hex", "{shade} {building}", "The serial number of the {k} is 0x{a}.",
     "The serial number of the {k} is 0x", "%%%%"},
    {"planted_code", "{planet}.{setting}", "{k} = {a}", "{k} = ", "#####"},
    {"planted_code", "{planet}_{setting}", "def {k}(x):\n    return{a}", "def {k}(x):\n    return",
     " {method}(x) + ##"},
    {"planted_code", "{planet}_{setting}", "\"{k}\":{a},", "\"{k}\":", " \"{method}\""},
};

}  // namespace

std::span<const WordList> word_lists() { return kLists; }
std::span<const Sentence> task_sentences() { return kSentences; }

}  // namespace heed::data
